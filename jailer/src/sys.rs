//! System calls with checked results, and directories as descriptors.
//!
//! All descriptors are closed by `execve`. The process has one thread.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr::null;
use std::time::Duration;

use libc::{c_int, c_long, c_uint, c_ulong, mode_t};

/// Owner, mode and identity of a file.
pub type Status = libc::stat;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn check_long(result: c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Converts a path or name for the kernel.
///
/// # Errors
/// Fails if the path contains a NUL.
pub fn c_string(path: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(path.as_ref().as_bytes()).map_err(io::Error::from)
}

/// Returns true if the effective user is root.
pub fn is_root() -> bool {
    // SAFETY: the call has no arguments.
    unsafe { libc::geteuid() == 0 }
}

/// Opens `/dev/null` for each closed standard descriptor, then closes all other descriptors but those of `kept`.
///
/// # Errors
/// Fails if the kernel has no `close_range`.
pub fn close_descriptors(mut kept: Vec<RawFd>) -> io::Result<()> {
    let mut standard = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the three structures are valid for reads and writes.
    unsafe { libc::poll(standard.as_mut_ptr(), 3, 0) };
    for descriptor in &standard {
        if descriptor.revents & libc::POLLNVAL != 0 {
            // The jail has no /dev/null, so that the VMM cannot do this itself. open(2) returns the lowest free descriptor, which is
            // this one. It fails only without a /dev, which leaves no remedy.
            // SAFETY: the path is a C string.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
    kept.sort_unstable();
    let mut first: c_uint = 3;
    for descriptor in kept {
        let number = c_uint::try_from(descriptor).unwrap_or(first);
        if number > first {
            close_range(first, number - 1)?;
        }
        first = first.max(number.saturating_add(1));
    }
    close_range(first, c_uint::MAX)
}

/// Closes the descriptors from `first` to `last`.
fn close_range(first: c_uint, last: c_uint) -> io::Result<()> {
    // SAFETY: the process owns no descriptor above 2 yet: no value of this program refers to one.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE) };
    check_long(result).map(drop).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot close inherited descriptors: {error}; use Linux 5.9 or later"),
        )
    })
}

/// Opens `path`.
///
/// # Errors
/// Fails if `open` fails.
pub fn open(path: impl AsRef<OsStr>, flags: c_int) -> io::Result<OwnedFd> {
    open_at(libc::AT_FDCWD, &c_string(path)?, flags, 0)
}

fn open_at(directory: RawFd, name: &CStr, flags: c_int, mode: mode_t) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a C string for the length of the call.
    let fd = check(unsafe { libc::openat(directory, name.as_ptr(), flags | libc::O_CLOEXEC, mode) })?;
    // SAFETY: the successful call has created the descriptor, which no other value owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the status of an open file.
///
/// # Errors
/// Fails if `fstat` fails.
pub fn status(file: &OwnedFd) -> io::Result<Status> {
    let mut status = MaybeUninit::<Status>::uninit();
    // SAFETY: `status` is valid for the write of the structure.
    check(unsafe { libc::fstat(file.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: the successful call has written the structure.
    Ok(unsafe { status.assume_init() })
}

/// Returns the status of the file at `path`, behind links.
///
/// # Errors
/// Fails if `stat` fails.
pub fn status_of(path: impl AsRef<OsStr>) -> io::Result<Status> {
    let path = c_string(path)?;
    let mut status = MaybeUninit::<Status>::uninit();
    // SAFETY: `path` is a C string, and `status` is valid for the write of the structure.
    check(unsafe { libc::stat(path.as_ptr(), status.as_mut_ptr()) })?;
    // SAFETY: the successful call has written the structure.
    Ok(unsafe { status.assume_init() })
}

/// Reads into `buffer` from `offset` of `file`. Returns the number of bytes.
///
/// # Errors
/// Fails if `pread` fails.
pub fn read_at(file: &OwnedFd, buffer: &mut [u8], offset: i64) -> io::Result<usize> {
    // SAFETY: `buffer` is valid for writes of its length.
    let count = unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), offset) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes `bytes` with one call, as the files of cgroups require.
///
/// # Errors
/// Fails if `write` fails or writes less.
pub fn write(file: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: `bytes` is valid for reads of its length.
    let count = unsafe { libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    match usize::try_from(count) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Copies all bytes of `source` to `target`, both at their offset 0, in the kernel.
///
/// # Errors
/// Fails if the copy fails, or has another length than `length`.
pub fn copy(source: &OwnedFd, target: &OwnedFd, length: usize) -> io::Result<()> {
    let mut copied = 0;
    let mut is_range = true;
    while copied < length {
        let rest = length - copied;
        let (from, to) = (source.as_raw_fd(), target.as_raw_fd());
        let result = if is_range {
            let unused = std::ptr::null_mut::<libc::loff_t>();
            // SAFETY: with null offsets the kernel uses those of the descriptors, and accesses no memory of the process.
            unsafe { libc::copy_file_range(from, unused, to, unused, rest, 0) }
        } else {
            // SAFETY: with a null offset the kernel uses that of the descriptor, and accesses no memory of the process.
            unsafe { libc::sendfile(to, from, std::ptr::null_mut(), rest) }
        };
        match usize::try_from(result) {
            Ok(0) => return Err(io::Error::other("the file was truncated during the copy")),
            Ok(count) => copied += count,
            // Not between all file systems, and not on all of them.
            Err(_) if is_range && copied == 0 => is_range = false,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// A directory as a descriptor, with its path for messages. Names are relative to it; the last component is never followed as a
/// link.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// Fails if `open` fails.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let fd = open(&path, libc::O_RDONLY | libc::O_DIRECTORY)?;
        Ok(Self { fd, path })
    }

    /// Returns the path, as it was before the change of the root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of `name` in the directory.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Opens the directory `name`, which must not be a link.
    ///
    /// # Errors
    /// Fails if `open` fails.
    pub fn open_directory(&self, name: &OsStr) -> io::Result<Self> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        Ok(Self {
            fd: self.open_file(name, flags, 0)?,
            path: self.join(name),
        })
    }

    /// Creates the directory `name`.
    ///
    /// # Errors
    /// Fails if `mkdir` fails, also if the name exists.
    pub fn create_directory(&self, name: &OsStr, mode: mode_t) -> io::Result<()> {
        let name = c_string(name)?;
        // SAFETY: `name` is a C string for the length of the call.
        check(unsafe { libc::mkdirat(self.fd.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
    }

    /// Opens the file `name`, which must not be a link.
    ///
    /// # Errors
    /// Fails if `open` fails.
    pub fn open_file(&self, name: &OsStr, flags: c_int, mode: mode_t) -> io::Result<OwnedFd> {
        open_at(
            self.fd.as_raw_fd(),
            &c_string(name)?,
            flags | libc::O_NOFOLLOW,
            mode,
        )
    }

    /// Opens `path` as a process would with this directory as its root. Returns true if it exists.
    pub fn has_in_root(&self, path: &OsStr) -> bool {
        let Ok(path) = c_string(path) else { return false };
        // SAFETY: all zeroes is a valid `open_how`.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = libc::O_PATH as u64 | libc::O_CLOEXEC as u64;
        how.resolve = libc::RESOLVE_IN_ROOT;
        let (how_pointer, size) = (&raw const how, size_of::<libc::open_how>());
        let fd = self.fd.as_raw_fd();
        // SAFETY: `path` is a C string, and `how` is valid for reads of `size` bytes.
        let fd = unsafe { libc::syscall(libc::SYS_openat2, fd, path.as_ptr(), how_pointer, size) };
        let Ok(fd) = c_int::try_from(fd) else { return false };
        if fd >= 0 {
            // SAFETY: the successful call has created the descriptor, which no other value owns.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        fd >= 0
    }

    /// Reads the file `name` as text.
    ///
    /// # Errors
    /// Fails if `open` or `read` fails.
    pub fn read(&self, name: &OsStr) -> io::Result<String> {
        let file = self.open_file(name, libc::O_RDONLY | libc::O_NONBLOCK, 0)?;
        let mut bytes = vec![0; 4096];
        let count = read_at(&file, &mut bytes, 0)?;
        bytes.truncate(count);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes `text` to the existing file `name`.
    ///
    /// # Errors
    /// Fails if `open` or `write` fails.
    pub fn write(&self, name: &OsStr, text: &str) -> io::Result<()> {
        write(&self.open_file(name, libc::O_WRONLY, 0)?, text.as_bytes())
    }

    /// Returns the status of the directory.
    ///
    /// # Errors
    /// Fails if `fstat` fails.
    pub fn status(&self) -> io::Result<Status> {
        status(&self.fd)
    }

    /// Returns the status of `name`, which may be a link.
    ///
    /// # Errors
    /// Fails if `fstatat` fails.
    pub fn status_of(&self, name: &OsStr) -> io::Result<Status> {
        let name = c_string(name)?;
        let mut status = MaybeUninit::<Status>::uninit();
        let (fd, flags) = (self.fd.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
        // SAFETY: `name` is a C string, and `status` is valid for the write of the structure.
        check(unsafe { libc::fstatat(fd, name.as_ptr(), status.as_mut_ptr(), flags) })?;
        // SAFETY: the successful call has written the structure.
        Ok(unsafe { status.assume_init() })
    }

    /// Returns the flags of the mount, as `ST_NOEXEC`.
    ///
    /// # Errors
    /// Fails if `fstatvfs` fails.
    pub fn mount_flags(&self) -> io::Result<c_ulong> {
        let mut status = MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: `status` is valid for the write of the structure.
        check(unsafe { libc::fstatvfs(self.fd.as_raw_fd(), status.as_mut_ptr()) })?;
        // SAFETY: the successful call has written the structure.
        Ok(unsafe { status.assume_init() }.f_flag)
    }

    /// Sets the owner of the directory itself, and its `mode` if it is given.
    ///
    /// # Errors
    /// Fails if `fchown` or `fchmod` fails.
    pub fn set_attributes(&self, uid: u32, gid: u32, mode: Option<mode_t>) -> io::Result<()> {
        set_owner(&self.fd, uid, gid)?;
        let Some(mode) = mode else { return Ok(()) };
        // SAFETY: the call takes no pointer.
        check(unsafe { libc::fchmod(self.fd.as_raw_fd(), mode) }).map(drop)
    }

    /// Sets the owner of `name`, which may be a link.
    ///
    /// # Errors
    /// Fails if `fchownat` fails.
    pub fn set_owner_of(&self, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
        let name = c_string(name)?;
        let (fd, flags) = (self.fd.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
        // SAFETY: `name` is a C string for the length of the call.
        check(unsafe { libc::fchownat(fd, name.as_ptr(), uid, gid, flags) }).map(drop)
    }

    /// Creates the character device `name` with mode 0600.
    ///
    /// # Errors
    /// Fails if `mknod` fails, also if the name exists.
    pub fn create_device(&self, name: &OsStr, device: libc::dev_t) -> io::Result<()> {
        let name = c_string(name)?;
        let (fd, mode) = (self.fd.as_raw_fd(), libc::S_IFCHR | 0o600);
        // SAFETY: `name` is a C string for the length of the call.
        check(unsafe { libc::mknodat(fd, name.as_ptr(), mode, device) }).map(drop)
    }

    /// Removes the file or empty directory `name`.
    ///
    /// # Errors
    /// Fails if `unlinkat` fails.
    pub fn remove(&self, name: &OsStr, is_directory: bool) -> io::Result<()> {
        let name = c_string(name)?;
        let flags = if is_directory { libc::AT_REMOVEDIR } else { 0 };
        // SAFETY: `name` is a C string for the length of the call.
        check(unsafe { libc::unlinkat(self.fd.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
    }

    /// Renames `from` to `to`, which it replaces.
    ///
    /// # Errors
    /// Fails if `rename` fails.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let (from, to, fd) = (c_string(from)?, c_string(to)?, self.fd.as_raw_fd());
        // SAFETY: both names are C strings for the length of the call.
        check(unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) }).map(drop)
    }

    /// Locks the directory until its descriptor is closed. Returns false if another process holds the lock.
    ///
    /// # Errors
    /// Fails if `flock` fails.
    pub fn try_lock(&self) -> io::Result<bool> {
        // SAFETY: the call takes no pointer.
        match check(unsafe { libc::flock(self.fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            result => result.map(|_| true),
        }
    }
}

/// Sets the owner of an open file.
///
/// # Errors
/// Fails if `fchown` fails.
pub fn set_owner(file: &OwnedFd, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::fchown(file.as_raw_fd(), uid, gid) }).map(drop)
}

/// Sets the mask of new files and returns the old one.
pub fn set_umask(mask: mode_t) -> mode_t {
    // SAFETY: the call takes no pointer.
    unsafe { libc::umask(mask) }
}

/// Moves the process to the network namespace `namespace`.
///
/// # Errors
/// Fails if `setns` fails.
pub fn join_network(namespace: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Gives the process a copy of its mount namespace.
///
/// # Errors
/// Fails if `unshare` fails.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map(drop)
}

/// Mounts `source` at `target`, or changes the mount there, by `flags`.
///
/// # Errors
/// Fails if `mount` fails.
pub fn mount(source: Option<&CStr>, target: &CStr, flags: c_ulong) -> io::Result<()> {
    let source = source.map_or(null(), CStr::as_ptr);
    // SAFETY: the paths are C strings or null, and type and data may be null for these flags.
    check(unsafe { libc::mount(source, target.as_ptr(), null(), flags, null()) }).map(drop)
}

/// Detaches the mount at `target`.
///
/// # Errors
/// Fails if `umount2` fails.
pub fn unmount(target: &CStr) -> io::Result<()> {
    // SAFETY: `target` is a C string for the length of the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Makes the working directory, a mount, the root. The old root lies on top of it, at the same place.
///
/// # Errors
/// Fails if `pivot_root` fails.
pub fn pivot_root() -> io::Result<()> {
    let here = c".".as_ptr();
    // SAFETY: both paths are C strings for the length of the call.
    check_long(unsafe { libc::syscall(libc::SYS_pivot_root, here, here) }).map(drop)
}

/// Sets the working directory.
///
/// # Errors
/// Fails if `chdir` fails.
pub fn change_directory(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is a C string for the length of the call.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// Sets soft and hard limit of `resource`.
///
/// # Errors
/// Fails if `setrlimit` fails.
pub fn set_limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: `limit` is valid for reads.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// Drops supplementary groups, then all rights of the current group and user.
///
/// # Errors
/// Fails if one of the calls fails.
pub fn set_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: with a size of 0 the kernel reads no groups.
    check(unsafe { libc::setgroups(0, null()) })?;
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::setresuid(uid, uid, uid) }).map(drop)
}

/// Creates a pipe: its read end and its write end.
///
/// # Errors
/// Fails if `pipe2` fails.
pub fn create_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` is valid for the write of two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the successful call has created both descriptors, which no other value owns.
    Ok(ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).into())
}

/// Reads `pipe` until its write ends are closed.
///
/// # Errors
/// Fails if `read` fails.
pub fn read_all(pipe: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0_u8; 512];
        // SAFETY: `buffer` is valid for writes of its length.
        let count = unsafe { libc::read(pipe.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match usize::try_from(count) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// Forks, as process 1 of a new PID namespace if `new_namespace` is set. Returns the PID of the child, or none in the child.
///
/// # Errors
/// Fails if `fork` or `clone` fails.
pub fn fork(new_namespace: bool) -> io::Result<Option<libc::pid_t>> {
    let pid = if new_namespace {
        let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
        // SAFETY: without CLONE_VM and with a null stack this is a fork; both processes continue on their copies of the stack, and
        // there is no other thread. The order of the last arguments, which differs between architectures, does not matter: all are 0.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        libc::pid_t::try_from(check_long(pid)?).map_err(io::Error::other)?
    } else {
        // SAFETY: the process has one thread, so that the child may go on like its parent.
        check(unsafe { libc::fork() })?
    };
    Ok((pid != 0).then_some(pid))
}

/// Returns the PID of this process.
pub fn process_id() -> libc::pid_t {
    // SAFETY: the call has no arguments.
    unsafe { libc::getpid() }
}

/// Ends the process at once.
pub fn exit(status: c_int) -> ! {
    // SAFETY: the call takes no pointer. Nothing is buffered: `exit` flushes nothing.
    unsafe { libc::_exit(status) }
}

/// Makes a write to a pipe without a reader fail instead of ending the process.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is a valid action.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Begins a session.
///
/// # Errors
/// Fails if the process leads a process group.
pub fn begin_session() -> io::Result<()> {
    // SAFETY: the call has no arguments.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Makes `file` the standard input, output and error.
///
/// # Errors
/// Fails if `dup3` fails.
pub fn replace_standard_descriptors(file: &OwnedFd) -> io::Result<()> {
    for standard in 0..3 {
        // SAFETY: no value of this program owns a standard descriptor.
        check(unsafe { libc::dup3(file.as_raw_fd(), standard, 0) })?;
    }
    Ok(())
}

/// Executes `path` with `arguments`, which include its own name, and an empty environment. Returns only a failure.
pub fn execute(path: &CStr, arguments: &[CString]) -> io::Error {
    let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(null());
    let environment = [null()];
    // Programs inherit ignored signals.
    // SAFETY: SIG_DFL is a valid action.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: `path` is a C string, and both arrays end in null and hold C strings for the length of the call.
    unsafe { libc::execve(path.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Returns the time of `clock`.
pub fn time(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writes.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Returns `prefix` followed by `name` and `suffix`.
pub fn affixed(prefix: &str, name: &OsStr, suffix: &str) -> OsString {
    OsString::from_vec([prefix.as_bytes(), name.as_bytes(), suffix.as_bytes()].concat())
}
