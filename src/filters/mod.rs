//! Isolation of the process: seccomp filters, capabilities, and access by other processes.
//!
//! A thread is restricted when it enters its [role](ThreadRole), before the guest runs. The order of the steps is fixed: the kernel
//! accepts filters of unprivileged threads only after `PR_SET_NO_NEW_PRIVS`, and the filters refuse further changes of capabilities.
//!
//! | module | contents |
//! |---|---|
//! | `source` | resources/seccomp, compiled by seccompiler in the build script |
//! | `tree` | search tree over the numbers of system calls |
//! | `custom` | filters of `--seccomp-filter` |
//! | `files` | Landlock |

mod custom;
mod files;
#[cfg(test)]
mod source;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree;

use std::cell::Cell;
use std::fs;
use std::io;
use std::mem::zeroed;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::OnceLock;

use devices::thread_role::{self, ThreadRole, set_restriction};
use libc::{c_int, c_void, siginfo_t, sock_filter, sock_fprog};
use syscalls::Sysno;
use vmm::emergency;
use vmm::memory::Pagemap;

pub use files::FileRules;

// `PROGRAMS`, in the order of `ThreadRole`.
include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// Firecracker's exit status after a system call that a filter refuses.
const REFUSED: u8 = 148;

/// `SYS_SECCOMP` of asm-generic/siginfo.h: a filter has caused the signal.
const SYS_SECCOMP: c_int = 1;

/// Number in the filters that stands for this process.
const THIS_PROCESS: u32 = 0x4d61_7966;

/// Version of [`CapabilityHeader`], `_LINUX_CAPABILITY_VERSION_3`: 64 capabilities.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Reason why the isolation cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The seccomp filters cannot be used.
    #[error(transparent)]
    Filters(custom::Error),
    /// An allowed directory cannot be used.
    #[error("cannot allow the files in {}; name a directory that exists", path.display())]
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

/// Source of the seccomp filters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Filters {
    /// Those of this program.
    #[default]
    Own,
    /// Those of a file of Firecracker's seccompiler-bin.
    File(PathBuf),
    /// None.
    Off,
}

/// Options of the isolation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Seccomp filters.
    pub filters: Filters,
    /// The process keeps its capabilities.
    pub keep_capabilities: bool,
    /// Directories whose files the process may open while the guest runs.
    pub allowed: Vec<PathBuf>,
}

/// Settings of the process, from [`Isolation`].
struct Settings {
    /// Program of each role, or `None` without filters. A role with an empty program has that of its creator.
    programs: Option<[&'static [sock_filter]; custom::NAMES.len()]>,
    keep_capabilities: bool,
    files: FileRules,
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

thread_local! {
    /// Role of this thread, for the message of a refused call.
    static ROLE: Cell<Option<ThreadRole>> = const { Cell::new(None) };
}

/// Prepares the isolation, before any other thread starts. Restricts no thread yet. `files` are those that the process needs while
/// the guest runs, beside those of `isolation`.
///
/// # Errors
/// [`Error`] if the filters or an allowed directory cannot be used.
pub fn set_up(isolation: &Isolation, mut files: FileRules) -> Result<(), Error> {
    let programs = match &isolation.filters {
        Filters::Own => Some(PROGRAMS),
        Filters::File(path) => Some(custom::read(path).map_err(Error::Filters)?),
        Filters::Off => None,
    };
    files.allowed.clone_from(&isolation.allowed);
    for path in &files.allowed {
        let read = fs::read_dir(path).map(drop);
        read.map_err(|source| Error::Directory {
            path: path.clone(),
            source,
        })?;
    }
    let _ = SETTINGS.set(Settings {
        programs,
        keep_capabilities: isolation.keep_capabilities,
        files,
    });
    install_handler();
    set_restriction(restrict);
    Ok(())
}

/// Restricts the calling thread to `role`.
fn restrict(role: ThreadRole) -> io::Result<()> {
    let Some(settings) = SETTINGS.get() else {
        return Ok(());
    };
    ROLE.set(Some(role));
    if role != ThreadRole::Start {
        if !settings.keep_capabilities {
            drop_capabilities()?;
        }
        if role == ThreadRole::Vmm {
            // SAFETY: the call has no preconditions.
            if unsafe { libc::geteuid() } != 0 {
                Pagemap::keep_open();
            }
            // Other processes of this user get no access to guest memory, and a core dump holds none.
            control(libc::PR_SET_DUMPABLE, 0)?;
            if !settings.files.is_restricted() {
                log::info!("clients can name any file; --allow DIR restricts mayfly to the files in DIR");
            }
            if let Some(hint) = denial_hint(settings) {
                thread_role::set_denial_hint(hint);
            }
        }
    }
    // Also keeps an execve from gaining capabilities.
    control(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    if matches!(role, ThreadRole::Vmm | ThreadRole::Vcpu) {
        files::restrict(&settings.files)?;
    }
    match settings.programs {
        Some(programs) if !programs[role as usize].is_empty() => {
            // Filters outlive an execve.
            thread_role::forbid_programs();
            install(programs[role as usize])
        }
        _ => Ok(()),
    }
}

/// Returns the way out of an access that the kernel denies while the guest runs.
fn denial_hint(settings: &Settings) -> Option<&'static str> {
    match (settings.keep_capabilities, settings.files.is_restricted()) {
        (true, false) => None,
        (true, true) => Some("while the guest runs, mayfly opens files in the directories of --allow only"),
        (false, false) => Some(
            "while the guest runs, mayfly has no capabilities, and the rights of its user decide; give this user access, or start \
             mayfly with --keep-capabilities",
        ),
        (false, true) => Some(
            "while the guest runs, mayfly opens files in the directories of --allow only, with the rights of its user and without \
             capabilities (--keep-capabilities)",
        ),
    }
}

/// Calls prctl(2) with one argument.
fn control(option: c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these options take numbers alone.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) }.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    /// 0: this thread.
    pid: c_int,
}

/// Drops all capabilities of this thread.
fn drop_capabilities() -> io::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    // Two of `struct __user_cap_data_struct`: effective, permitted, inheritable.
    let none = [[0_u32; 3]; 2];
    // SAFETY: both arguments have the layout that the version requires, and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) })
}

/// Installs `program` for this thread, with the number of this process in place of [`THIS_PROCESS`].
fn install(program: &[sock_filter]) -> io::Result<()> {
    let this = std::process::id();
    let mut instructions = program.to_vec();
    for instruction in &mut instructions {
        if instruction.k == THIS_PROCESS {
            instruction.k = this;
        }
    }
    let program = sock_fprog {
        len: u16::try_from(instructions.len()).map_err(io::Error::other)?,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the instructions, which stay valid during the call, and checks them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    })
}

/// Installs the handler of SIGSYS, which a filter sends to the thread of a refused call.
fn install_handler() {
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // Fails only for an invalid signal number.
    // SAFETY: `action` is valid, and the handler has the type that SA_SIGINFO requires and is async-signal-safe.
    unsafe { libc::sigaction(libc::SIGSYS, &raw const action, null_mut()) };
}

/// Begin of `siginfo_t` for [`SYS_SECCOMP`], asm-generic/siginfo.h.
#[repr(C)]
struct RefusedCall {
    signal: c_int,
    error: c_int,
    code: c_int,
    address: *const c_void,
    number: c_int,
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid structure to a handler with SA_SIGINFO, which begins with the fields of `RefusedCall`.
    let call = unsafe { &*info.cast::<RefusedCall>() };
    if call.code != SYS_SECCOMP {
        // Ends the process by the signal when the handler returns, so that its parent sees the cause.
        // SAFETY: SIG_DFL is a valid action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        // SAFETY: the call takes no pointer and is safe in a signal handler.
        unsafe { libc::raise(signal) };
        return;
    }
    let mut message = Message::default();
    message.push(b"mayfly: a seccomp filter has refused the system call ");
    let name = usize::try_from(call.number).ok().and_then(Sysno::new);
    message.push(name.map_or("of unknown name", |call| call.name()).as_bytes());
    message.push(b" of a thread of role ");
    message.push(
        ROLE.get()
            .map_or("unknown", |role| custom::NAMES[role as usize].0)
            .as_bytes(),
    );
    message.push(b"; report it as a defect; --no-seccomp turns the filters off\n");
    emergency::end(REFUSED, message.bytes())
}

/// Text without allocation. Text beyond the capacity is cut off.
struct Message {
    bytes: [u8; 256],
    length: usize,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            bytes: [0; 256],
            length: 0,
        }
    }
}

impl Message {
    fn push(&mut self, text: &[u8]) {
        for (place, byte) in self.bytes[self.length..].iter_mut().zip(text) {
            *place = *byte;
            self.length += 1;
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
