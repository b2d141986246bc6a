//! The steps in their order, and their undo.

use crate::args::Args;
use crate::contents::userfaultfd_minor;
use crate::error::Error;
use crate::jail::Jail;
use crate::launch::{Clocks, Files, Launch};
use crate::program::Program;
use crate::report::warn;
use crate::undo::Undo;
use crate::{cgroup, processor, root, sys};

/// Starts the VMM. Returns only if a child process has become the VMM, or with an error.
///
/// # Errors
/// Fails if a step fails. The steps before it are undone then, as far as the process still has the rights.
pub fn execute(args: &Args, clocks: Clocks) -> Result<(), Error> {
    let mut undo = Undo::default();
    // Modes are exact. The VMM gets the mask of the jailer's parent.
    let mask = sys::set_umask(0);
    let result = run(args, clocks, mask, &mut undo);
    if result.is_err() {
        for error in undo.run() {
            warn(&format!("{}; remove it by hand", error.chain()));
        }
    }
    result
}

fn run(args: &Args, clocks: Clocks, mask: libc::mode_t, undo: &mut Undo) -> Result<(), Error> {
    let program = Program::open(&args.exec_file)?;
    let mut jail = Jail::create(args, &program.name, undo)?;
    program.check_in(&jail.root)?;
    jail.copy_program(&program, undo)?;
    if let Some(path) = &args.netns {
        let operation = "join the network namespace";
        let namespace = sys::open(path, libc::O_RDONLY).map_err(Error::path(operation, path))?;
        sys::join_network(&namespace).map_err(Error::path(operation, path))?;
    }
    cgroup::join(args, &program.name, undo)?;
    // Host paths end with the change of the root.
    let null = if args.daemonize {
        let path = "/dev/null";
        Some(sys::open(path, libc::O_RDWR).map_err(Error::path("open", path))?)
    } else {
        None
    };
    let userfaultfd = userfaultfd_minor();
    processor::copy(&jail, (args.uid, args.gid), undo)?;
    root::enter(jail.root.path(), undo)?;
    jail.create_devices(userfaultfd, undo)?;
    let files = Files {
        pid: jail.create_pid_file(&program.name, undo)?,
        program: jail.replacement(&program),
    };
    sys::set_umask(mask);
    Launch::new(args, &program, clocks, null, files)?.start()
}
