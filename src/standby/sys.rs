//! System calls without a safe interface in the standard library: peers, non-blocking connections, pidfds, start of a process.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr;

use libc::{c_char, c_int, c_void};

/// `PIDFD_GET_INFO` of linux/pidfd.h, for a structure of 64 bytes.
const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
/// `PIDFD_INFO_EXIT`: the exit status is requested, and is present.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// Returns true if the process at the other end of `stream` belongs to the user of this process or to root. The mode of the
/// socket's file restricts connections only until another user gets access to it.
pub fn is_permitted(stream: &UnixStream) -> bool {
    // SAFETY: the call takes no pointer and cannot fail.
    let own = unsafe { libc::geteuid() };
    peer(stream.as_fd()).is_ok_and(|peer| peer.uid == 0 || peer.uid == own)
}

/// Returns the process that has connected `socket`.
fn peer(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: libc::uid_t::MAX,
        gid: 0,
    };
    let mut length = libc::socklen_t::try_from(size_of_val(&peer)).unwrap_or_default();
    // SAFETY: `peer` is valid for writes of `length` bytes, and all bytes are valid in it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    check(result).map(|_| peer)
}

/// Connects to the socket at `path`. Fails instead of waiting for room in its queue.
///
/// # Errors
/// Fails if no process listens, or its queue is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no pointer.
    let socket = own(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: zeros are valid values of the integers and bytes of the structure.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
    let path = path.as_os_str().as_encoded_bytes();
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = c_char::from_ne_bytes([*from]);
    }
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
    // SAFETY: `address` has `length` bytes and outlives the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    check(result).map(|_| UnixStream::from(socket))
}

/// Opens a descriptor that reports new files in `directory`.
///
/// # Errors
/// Fails if the directory cannot be watched.
pub fn watch_directory(directory: &CStr) -> io::Result<File> {
    // SAFETY: the call takes no pointer.
    let watch = own(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) })?;
    let events = libc::IN_CREATE | libc::IN_MOVED_TO;
    // SAFETY: the path is a C string.
    check(unsafe { libc::inotify_add_watch(watch.as_raw_fd(), directory.as_ptr(), events) })?;
    Ok(File::from(watch))
}

/// Opens a descriptor of the process `pid`.
///
/// # Errors
/// Fails if it does not exist.
pub fn open_process(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    own(c_int::try_from(result).unwrap_or(-1))
}

/// Sends `signal` to a process.
///
/// # Errors
/// Fails if it has ended.
pub fn signal(process: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    let info: *const c_void = ptr::null();
    // SAFETY: a null pointer requests the information of kill(2).
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) };
    check(c_int::try_from(result).unwrap_or(-1)).map(drop)
}

/// End of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Exit status.
    Status(u8),
    /// Signal that ended it.
    Signal(c_int),
    /// Unknown: another process was its parent.
    Unknown,
    /// Unknown, but not a suspend.
    Lost,
}

impl Exit {
    /// Converts from a status in the format of wait(2).
    pub fn from_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Status(u8::try_from((status >> 8) & 0xff).unwrap_or(0)),
            signal => Self::Signal(signal),
        }
    }
}

/// Returns the end of a process that has ended. A child is removed from the process table.
pub fn reap(process: BorrowedFd<'_>) -> Exit {
    reap_child(process).unwrap_or_else(|| exit_of_stranger(process))
}

/// Removes a child that has ended from the process table, and returns its end. Returns nothing if the process is no child.
pub fn reap_child(process: BorrowedFd<'_>) -> Option<Exit> {
    // SAFETY: zeros are valid values of the integers of the structure.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let id = libc::id_t::try_from(process.as_raw_fd()).unwrap_or_default();
    // SAFETY: `info` is valid for writes.
    let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::WNOHANG) };
    if result != 0 {
        return None;
    }
    // SAFETY: waitid has filled the fields of SIGCHLD.
    let status = unsafe { info.si_status() };
    Some(match info.si_code {
        libc::CLD_EXITED => Exit::Status(u8::try_from(status & 0xff).unwrap_or(0)),
        libc::CLD_KILLED | libc::CLD_DUMPED => Exit::Signal(status),
        _ => Exit::Unknown,
    })
}

/// Returns true if a process has ended.
pub fn has_ended(process: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: process.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the kernel reads and writes `poll`.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Maximum wait in milliseconds until the parent of a process has read its status.
const REAP_TIMEOUT: c_int = 20;

/// Asks the kernel for the exit status of a process that is no child, since Linux 6.15. It is there once the parent has read it.
fn exit_of_stranger(process: BorrowedFd<'_>) -> Exit {
    let mut poll = libc::pollfd {
        fd: process.as_raw_fd(),
        // The kernel always reports a hang-up.
        events: 0,
        revents: 0,
    };
    // SAFETY: the structure is valid for reads and writes.
    unsafe { libc::poll(&raw mut poll, 1, REAP_TIMEOUT) };
    let mut info = [0_u64; 8];
    info[0] = PIDFD_INFO_EXIT;
    // SAFETY: `info` has the 64 bytes that the request names, and all bytes are valid in it.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), PIDFD_GET_INFO, info.as_mut_ptr()) };
    if result != 0 || info[0] & PIDFD_INFO_EXIT == 0 {
        return Exit::Unknown;
    }
    // Offset 60 of the structure, in the format of wait(2).
    Exit::from_status(i32::from_ne_bytes(
        (info[7] >> 32).to_le_bytes()[..4].try_into().unwrap_or_default(),
    ))
}

/// Locks `file` for this process, until its end.
///
/// # Errors
/// Fails if another process has the lock.
pub fn lock(file: &File) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

fn check(result: c_int) -> io::Result<c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Owns the inherited descriptor `number`, which nothing else in this process owns. Children do not inherit it any more.
///
/// # Errors
/// Fails if it is not open.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open, and by contract nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Checks that `socket` accepts connections.
///
/// # Errors
/// Fails with EINVAL if it does not listen, and with ENOTSOCK if it is no socket.
pub fn check_listener(socket: BorrowedFd<'_>) -> io::Result<()> {
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ACCEPTCONN);
    let (mut listens, mut size): (libc::c_int, libc::socklen_t) = (0, 4);
    let (value, length) = ((&raw mut listens).cast(), &raw mut size);
    // SAFETY: `listens` is an int of 4 bytes, and both are valid for writes.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value, length) })?;
    match listens {
        0 => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => Ok(()),
    }
}

/// Owns a descriptor that a call has returned.
fn own(descriptor: RawFd) -> io::Result<OwnedFd> {
    check(descriptor)?;
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Number of descriptors that a child can inherit, beside its standard descriptors.
pub const MAX_INHERITED: usize = 40;

/// Stack of a child until it executes its program, in bytes.
const STACK: usize = 64 << 10;

/// Reserved descriptors, in ascending order without gaps: /dev/null, stderr of a child, and those that it inherits.
///
/// A child gets a copy of the table of descriptors up to the last reserved one. A supervisor holds a descriptor for each sleeping
/// instance: a copy of all of them would make a start as slow as their number.
pub struct Slots {
    descriptors: Vec<OwnedFd>,
    stack: Box<[u128]>,
}

/// Program of a child, with the descriptors that it inherits.
pub struct Program<'a> {
    /// Path of the program.
    pub path: &'a CStr,
    /// Arguments, with the name of the program.
    pub arguments: &'a [CString],
    /// stderr.
    pub stderr: BorrowedFd<'a>,
    /// Descriptors with the numbers of [`Slots::number`].
    pub inherited: &'a [BorrowedFd<'a>],
    /// File that gets the child's line of /proc/PID/stat before the program starts.
    pub identity: BorrowedFd<'a>,
    /// File `cgroup.procs` of the child's cgroup.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Step of a child before its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Record,
    Cgroup,
    Descriptors,
    Execute,
}

/// Values that the child reads, and its failure. It shares the memory of this process, and may allocate nothing.
struct Plan {
    path: *const c_char,
    arguments: *const *const c_char,
    null: RawFd,
    stderr: RawFd,
    /// First descriptor that the child does not get.
    end: libc::c_uint,
    identity: RawFd,
    cgroup: Option<RawFd>,
    /// Failed step and its error number.
    failure: Option<(Step, c_int)>,
}

/// A started child.
#[derive(Debug)]
pub struct Child {
    /// Process ID.
    pub pid: libc::pid_t,
    /// Descriptor of the process.
    pub process: OwnedFd,
}

/// Failure to start a child.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no process, descriptor or memory for it.
    #[error("cannot start a process: {0}; raise pid_max, RLIMIT_NPROC and RLIMIT_NOFILE, or free memory")]
    Full(io::Error),
    /// A step of the child failed.
    #[error("cannot {0}: {1}")]
    Child(&'static str, io::Error),
}

impl Slots {
    /// Reserves descriptors. Call it before others are opened, so that their numbers are low.
    ///
    /// # Errors
    /// Fails at the limit of descriptors.
    pub fn reserve() -> io::Result<Self> {
        let mut descriptors = vec![OwnedFd::from(File::open("/dev/null")?)];
        // Closed at the end only: the kernel returns the lowest free number.
        let mut discarded = Vec::new();
        while descriptors.len() < MAX_INHERITED + 2 {
            let next = descriptors[0].try_clone()?;
            // An open descriptor between them begins a new row.
            if next.as_raw_fd() != descriptors[descriptors.len() - 1].as_raw_fd() + 1 {
                discarded.append(&mut descriptors);
            }
            descriptors.push(next);
        }
        let stack = vec![0_u128; STACK / size_of::<u128>()].into_boxed_slice();
        Ok(Self { descriptors, stack })
    }

    /// Returns the number that the inherited descriptor at `index` has in the child.
    pub fn number(&self, index: usize) -> RawFd {
        self.descriptors[index + 2].as_raw_fd()
    }

    /// Starts `program` in a session of its own, with /dev/null as stdin and stdout. Returns once the program executes.
    ///
    /// # Errors
    /// [`StartError`]; no child exists then.
    pub fn start(&mut self, program: &Program<'_>) -> Result<Child, StartError> {
        assert!(program.inherited.len() <= MAX_INHERITED, "too many descriptors");
        let filled = self.fill(program).and_then(|()| self.clone(program));
        self.empty(program.inherited.len());
        filled
    }

    /// Duplicates the descriptors of `program` to their numbers, where they survive execve(2).
    fn fill(&self, program: &Program<'_>) -> Result<(), StartError> {
        let given = std::iter::once(&program.stderr).chain(program.inherited);
        for (descriptor, slot) in given.zip(&self.descriptors[1..]) {
            // SAFETY: the call takes no pointer. It replaces a reserved descriptor, which stays owned.
            let result = unsafe { libc::dup3(descriptor.as_raw_fd(), slot.as_raw_fd(), libc::O_CLOEXEC) };
            check(result).map_err(StartError::Full)?;
        }
        for slot in &self.descriptors[2..program.inherited.len() + 2] {
            // SAFETY: the call takes no pointer.
            unsafe { libc::fcntl(slot.as_raw_fd(), libc::F_SETFD, 0) };
        }
        Ok(())
    }

    /// Releases stderr and the first `count` inherited descriptors.
    fn empty(&self, count: usize) {
        for slot in &self.descriptors[1..count + 2] {
            // SAFETY: the call takes no pointer. It replaces a reserved descriptor, which stays owned.
            unsafe { libc::dup3(self.descriptors[0].as_raw_fd(), slot.as_raw_fd(), libc::O_CLOEXEC) };
        }
    }

    fn clone(&mut self, program: &Program<'_>) -> Result<Child, StartError> {
        let arguments: Vec<_> = program
            .arguments
            .iter()
            .map(|argument| argument.as_ptr())
            .collect();
        let arguments = [arguments, vec![ptr::null()]].concat();
        let last = self.number(MAX_INHERITED - 1);
        let mut plan = Plan {
            path: program.path.as_ptr(),
            arguments: arguments.as_ptr(),
            null: self.descriptors[0].as_raw_fd(),
            stderr: self.descriptors[1].as_raw_fd(),
            end: libc::c_uint::try_from(last + 1).unwrap_or(libc::c_uint::MAX),
            identity: program.identity.as_raw_fd(),
            cgroup: program.cgroup.map(|file| file.as_raw_fd()),
            failure: None,
        };
        // The kernel does not copy the memory, and this thread continues when the program executes (vfork).
        let flags =
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD;
        let mut descriptor: c_int = -1;
        let stack = self.stack.as_mut_ptr_range().end;
        // SAFETY: the child has the stack for itself, because this thread waits. It gets the only reference to `plan`, and stays
        // within async-signal-safe functions.
        let pid = unsafe {
            libc::clone(
                run_child,
                stack.cast(),
                flags,
                (&raw mut plan).cast(),
                &raw mut descriptor,
            )
        };
        check(pid).map_err(StartError::Full)?;
        let process = own(descriptor).map_err(StartError::Full)?;
        match plan.failure {
            None => Ok(Child { pid, process }),
            Some((step, number)) => {
                reap(process.as_fd());
                let error = io::Error::from_raw_os_error(number);
                Err(match number {
                    libc::EMFILE | libc::ENFILE | libc::ENOMEM => StartError::Full(error),
                    _ => StartError::Child(step.operation(), error),
                })
            }
        }
    }
}

impl Step {
    fn operation(self) -> &'static str {
        match self {
            Self::Record => "record the process by /proc/self/stat",
            Self::Cgroup => "move the process to its cgroup",
            Self::Descriptors => "pass descriptors to the process",
            Self::Execute => "execute the program of the instance",
        }
    }
}

/// Prepares the child and executes its program. Runs in the memory of the supervisor, whose thread waits.
extern "C" fn run_child(plan: *mut c_void) -> c_int {
    // SAFETY: `Slots::clone` passes this structure, and its thread waits until the child has executed a program or ended.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    let Err(step) = prepare(plan);
    let number = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    plan.failure = Some((step, number));
    // SAFETY: the call has no preconditions.
    unsafe { libc::_exit(127) }
}

/// Returns only if a step fails.
fn prepare(plan: &Plan) -> Result<std::convert::Infallible, Step> {
    // Not a member of the supervisor's process group, to which a terminal sends signals.
    // SAFETY: the call takes no pointer.
    unsafe { libc::setsid() };
    record(plan.identity)?;
    if let Some(cgroup) = plan.cgroup {
        // SAFETY: the buffer has this length.
        let written = unsafe { libc::write(cgroup, b"0".as_ptr().cast(), 1) };
        if written != 1 {
            return Err(Step::Cgroup);
        }
    }
    // Until here the child shares the table of descriptors, and with it the lock of the state directory.
    // SAFETY: the call takes no pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            plan.end,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    };
    // SAFETY: the call takes no pointer.
    if result != 0 && unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(Step::Descriptors);
    }
    for (descriptor, standard) in [(plan.null, 0), (plan.null, 1), (plan.stderr, 2)] {
        // SAFETY: the call takes no pointer. The table is that of the child, which uses no other object.
        if unsafe { libc::dup2(descriptor, standard) } < 0 {
            return Err(Step::Descriptors);
        }
    }
    if plan.null > 3 {
        // Descriptors that this program has inherited itself.
        let last = libc::c_uint::try_from(plan.null - 1).unwrap_or(3);
        // SAFETY: the call takes no pointer. The table is that of the child, which uses no other object.
        unsafe { libc::syscall(libc::SYS_close_range, 3, last, 0) };
    }
    // SAFETY: zeros are a valid, empty set.
    let none: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: the set is valid, and a null pointer for the old one is allowed.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
    // SAFETY: the kernel keeps the actions of a process, which is not shared, and SIG_DFL is valid.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: this process has one thread that could change the environment, and that one waits.
    let environment = unsafe { environ };
    // SAFETY: path and arguments are C strings, and both arrays end with a null pointer.
    unsafe { libc::execve(plan.path, plan.arguments, environment) };
    Err(Step::Execute)
}

/// Writes the line of this process in /proc to `identity`.
fn record(identity: RawFd) -> Result<(), Step> {
    let mut line = [0_u8; 1024];
    // SAFETY: the path is a C string.
    let file = unsafe { libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return Err(Step::Record);
    }
    // SAFETY: the buffer has this length.
    let read = unsafe { libc::read(file, line.as_mut_ptr().cast(), line.len()) };
    let Ok(length @ 1..) = usize::try_from(read) else {
        return Err(Step::Record);
    };
    // SAFETY: the first `length` bytes are initialized.
    let written = unsafe { libc::write(identity, line.as_ptr().cast(), length) };
    // SAFETY: the call has opened it, and nothing else uses it.
    unsafe { libc::close(file) };
    if written == read {
        Ok(())
    } else {
        Err(Step::Record)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::{self, File};
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::{
        Child, Exit, MAX_INHERITED, Program, Slots, StartError, is_permitted, open_process, reap, signal,
    };

    struct Fixture {
        slots: Slots,
        stderr: File,
        identity: File,
        directory: scratch::Directory,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = scratch::Directory::new();
            let create = |name: &str| {
                let path = directory.path(name);
                File::options()
                    .create_new(true)
                    .read(true)
                    .write(true)
                    .open(path)
                    .unwrap()
            };
            Self {
                slots: Slots::reserve().unwrap(),
                stderr: create("stderr"),
                identity: create("identity"),
                directory,
            }
        }

        fn start(&mut self, path: &str, script: &str, inherited: &[File]) -> Result<Child, StartError> {
            let inherited: Vec<_> = inherited.iter().map(AsFd::as_fd).collect();
            let arguments: Vec<_> = ["sh", "-c", script]
                .map(|text| CString::new(text).unwrap())
                .into();
            self.slots.start(&Program {
                path: &CString::new(path).unwrap(),
                arguments: &arguments,
                stderr: self.stderr.as_fd(),
                inherited: &inherited,
                identity: self.identity.as_fd(),
                cgroup: None,
            })
        }

        /// Runs a script to its end, and returns the end and its stderr.
        fn run(&mut self, script: &str, inherited: &[File]) -> (Exit, String) {
            let child = self.start("/bin/sh", script, inherited).unwrap();
            scratch::await_readable(child.process.as_fd()).unwrap();
            let exit = reap(child.process.as_fd());
            let text = fs::read_to_string(self.directory.path("stderr")).unwrap();
            (exit, text)
        }
    }

    #[test]
    fn own_user_is_permitted() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        assert!(is_permitted(&stream));
    }

    #[test]
    fn reserved_numbers_have_no_gaps() {
        // Gaps among the numbers of this process.
        let mut files: Vec<_> = (0..60).map(|_| Some(File::open("/dev/null").unwrap())).collect();
        for file in files.iter_mut().step_by(3) {
            *file = None;
        }
        let slots = Slots::reserve().unwrap();
        let numbers: Vec<_> = (0..MAX_INHERITED).map(|index| slots.number(index)).collect();
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{numbers:?}"
        );
    }

    #[test]
    fn child_inherits_only_given_descriptors() {
        let mut fixture = Fixture::new();
        let file = fixture.directory.write("given", "content");
        let files = [File::open(&file).unwrap(), File::open(&file).unwrap()];
        let (first, third) = (fixture.slots.number(0), fixture.slots.number(2));
        let script =
            format!("cat /proc/self/fd/{first} >&2; ls /proc/self/fd >&2; test ! -e /proc/self/fd/{third}");
        let (exit, text) = fixture.run(&script, &files);
        assert_eq!(exit, Exit::Status(0), "{text}");
        // 0 to 2, both files, and the directory that ls reads.
        let numbers = text.strip_prefix("content").unwrap().lines().count();
        assert_eq!(numbers, 6, "{text}");
        // The numbers are free for the next child.
        let (exit, text) = fixture.run("exec ls /proc/self/fd >&2", &[]);
        assert_eq!((exit, text.lines().count() - 6), (Exit::Status(0), 4), "{text}");
    }

    #[test]
    fn child_is_recorded_before_its_program() {
        let mut fixture = Fixture::new();
        let child = fixture.start("/bin/sh", "exit 7", &[]).unwrap();
        let mut line = String::new();
        fixture.identity.rewind().unwrap();
        fixture.identity.read_to_string(&mut line).unwrap();
        assert!(line.starts_with(&format!("{} (", child.pid)), "{line}");
        scratch::await_readable(child.process.as_fd()).unwrap();
        assert_eq!(reap(child.process.as_fd()), Exit::Status(7));
    }

    #[test]
    fn signal_and_session_are_those_of_the_child() {
        let mut fixture = Fixture::new();
        let child = fixture.start("/bin/sh", "exec sleep 60", &[]).unwrap();
        // SAFETY: the call takes no pointer.
        assert_eq!(unsafe { libc::getsid(child.pid) }, child.pid);
        signal(child.process.as_fd(), libc::SIGTERM).unwrap();
        scratch::await_readable(child.process.as_fd()).unwrap();
        assert_eq!(reap(child.process.as_fd()), Exit::Signal(libc::SIGTERM));
        open_process(child.pid).unwrap_err();
    }

    #[test]
    fn missing_program_leaves_no_child() {
        let mut fixture = Fixture::new();
        let error = fixture.start("/missing", "", &[]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("cannot execute the program of the instance: No such file"),
            "{text}"
        );
    }

    #[test]
    fn all_descriptors_can_be_inherited() {
        let mut fixture = Fixture::new();
        let files: Vec<_> = (0..MAX_INHERITED)
            .map(|_| File::open("/dev/zero").unwrap())
            .collect();
        let script = "for fd in /proc/$$/fd/*; do readlink $fd; done | grep -c zero >&2";
        let (exit, text) = fixture.run(script, &files);
        assert_eq!((exit, text.trim()), (Exit::Status(0), "40"));
    }
}
