//! Namespaces, processes, state of a directory tree.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, thread};

use scratch::{Directory, KillDaemon, KillOnDrop, Requirement};

/// User and group of the VMM.
pub const UID: u32 = 1234;
pub const GID: u32 = 5678;

/// Returns mayfly: `$MAYFLY`, or the program beside the jailer, which a build of the workspace has put there.
pub fn mayfly() -> Option<PathBuf> {
    let program = env::var_os("MAYFLY").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_BIN_EXE_mayfly-jailer")).with_file_name("mayfly");
    Some(program.unwrap_or_else(beside)).filter(|path| path.exists())
}

/// An empty file system for jails.
pub struct Host {
    /// Directory of all jails.
    pub base: PathBuf,
    mayfly: PathBuf,
}

fn mount(source: &CStr, target: &Path, kind: &CStr, flags: libc::c_ulong) {
    let target = CString::new(target.to_str().unwrap()).unwrap();
    // SAFETY: all pointers are C strings for the length of the call, or null.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Runs `test` on a thread with namespaces of its own, if the host permits it.
#[track_caller]
#[allow(clippy::disallowed_methods, reason = "each wait of `test` has a limit")]
pub fn in_namespaces(test: impl FnOnce(&Host) + Send) {
    if !scratch::require(Requirement::Root) || !scratch::require(Requirement::MountNamespace) {
        return;
    }
    let Some(mayfly) = mayfly() else {
        scratch::skip("the program mayfly", "run cargo build");
        return;
    };
    let directory = Directory::new();
    let base = directory.path("base");
    fs::create_dir(&base).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call takes no pointer and affects this thread only.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            mount(c"", Path::new("/"), c"", libc::MS_REC | libc::MS_PRIVATE);
            mount(c"tmpfs", &base, c"tmpfs", 0);
            test(&Host { base, mayfly });
        });
        thread.join().unwrap();
    });
}

impl Host {
    /// Returns a command that starts mayfly in the jail `id`, with an API socket and with more `options` of the jailer.
    pub fn command(&self, id: &str, options: &[&str]) -> Command {
        self.command_for(&self.mayfly, id, options)
    }

    /// Returns a command that starts `program` in the jail `id`.
    pub fn command_for(&self, program: &Path, id: &str, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly-jailer"));
        command.args(["--id", id, "--exec-file"]).arg(program);
        command.args(["--uid", &UID.to_string(), "--gid", &GID.to_string()]);
        command.arg("--chroot-base-dir").arg(&self.base).args(options);
        command.args(["--", "--api-sock", "/run/api.sock"]);
        command.stdin(Stdio::null());
        command
    }

    /// Returns the root of the jail `id`.
    pub fn root(&self, id: &str) -> PathBuf {
        self.base
            .join(self.mayfly.file_name().unwrap())
            .join(id)
            .join("root")
    }

    /// Starts mayfly in the jail `id`, and waits for its API socket.
    pub fn start(&self, id: &str, options: &[&str]) -> Jailed {
        let mut command = self.command(id, options);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = KillOnDrop(command.spawn().unwrap());
        let root = self.root(id);
        let socket = root.join("run/api.sock");
        scratch::wait_until("the API socket", || {
            if child.0.try_wait().unwrap().is_some() {
                let mut text = String::new();
                let stderr = child.0.stderr.as_mut().unwrap();
                stderr.read_to_string(&mut text).unwrap();
                panic!("the jailer has failed: {text}");
            }
            is_served(&socket)
        });
        Jailed { child, root }
    }

    /// Waits until the VMM in the jail `id` accepts a connection.
    pub fn await_socket(&self, id: &str) {
        let socket = self.root(id).join("run/api.sock");
        scratch::wait_until("the API socket", || is_served(&socket));
    }

    /// Runs the jailer, which must fail. Returns its stderr.
    pub fn fail(&self, command: &mut Command) -> String {
        let output = scratch::run(command);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(output.stdout.is_empty());
        assert!(text.starts_with("mayfly-jailer: "), "{text}");
        text
    }

    /// Runs the jailer, which must succeed and leave the VMM `id` behind. Returns a guard of the VMM.
    pub fn start_in_background(&self, id: &str, options: &[&str]) -> KillDaemon {
        let mut command = self.command(id, options);
        // The VMM may inherit them: the end of a pipe would not mean that of the jailer.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let status = scratch::wait_exit(&mut command.spawn().unwrap());
        assert!(status.success(), "{options:?}: {status}");
        // The VMM has been executed, so that the file is complete.
        let daemon = KillDaemon(self.pid(id));
        assert!(proc_file(daemon.0, "cmdline").starts_with("/mayfly\0"));
        self.await_socket(id);
        daemon
    }

    /// Returns the PID in the file of the jail `id`.
    pub fn pid(&self, id: &str) -> u32 {
        let name = format!("{}.pid", self.mayfly.file_name().unwrap().to_str().unwrap());
        let text = fs::read_to_string(self.root(id).join(name)).unwrap();
        text.parse().unwrap()
    }
}

/// Returns true if the VMM accepts connections, and has removed the temporary name of its socket.
fn is_served(socket: &Path) -> bool {
    let entries = || fs::read_dir(socket.parent().unwrap());
    UnixStream::connect(socket).is_ok() && entries().is_ok_and(|entries| entries.count() == 1)
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A VMM in its jail. Drop kills it.
pub struct Jailed {
    pub child: KillOnDrop,
    pub root: PathBuf,
}

impl Jailed {
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }
}

/// Reads a file of the process `pid` in /proc.
pub fn proc_file(pid: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap()
}

/// Returns the value of a line of /proc/PID/status, with single blanks.
pub fn proc_status(pid: u32, name: &str) -> String {
    let status = proc_file(pid, "status");
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}:")));
    let words = value.unwrap().split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}

/// Returns the identity of a namespace of the process `pid`.
pub fn namespace(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// Returns a line for each file below `root`: path, type, mode, owner, device number.
pub fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let kind = metadata.file_type();
            let kind = match () {
                () if kind.is_dir() => "directory",
                () if kind.is_char_device() => "device",
                () if kind.is_socket() => "socket",
                () if kind.is_symlink() => "link",
                () => "file",
            };
            let device = metadata.rdev();
            let device = match device {
                0 => String::new(),
                _ => format!(" {}:{}", libc::major(device), libc::minor(device)),
            };
            lines.push(format!(
                "{} {kind} {:o} {}:{}{device}",
                path.strip_prefix(root).unwrap().display(),
                metadata.mode() & 0o7777,
                metadata.uid(),
                metadata.gid(),
            ));
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    lines.sort();
    lines
}
