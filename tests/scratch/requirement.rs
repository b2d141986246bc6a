//! Requirements of tests on their host.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::Location;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::{env, ptr, thread};

/// Environment variable with the value `all` where a test that cannot run is a failure.
const TESTS: &str = "MAYFLY_TESTS";
/// Environment variable with the file that gets a line for each skipped test.
const SKIPPED: &str = "MAYFLY_SKIPPED";

/// Something that a test needs and that not all hosts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// The user is root.
    Root,
    /// A user that may create io_urings.
    IoUring,
    /// A free loop device, and `losetup`.
    LoopDevice,
    /// A user that may create mount namespaces, and mount file systems in them.
    MountNamespace,
    /// A user that may create network namespaces and taps, and `ip`.
    NetworkNamespace,
    /// A user that may create network namespaces, a kernel with nf_tables, and `nft`.
    Nftables,
    /// The program `passt`.
    Passt,
    /// The program `strace`.
    Strace,
    /// The program `gdb`.
    Gdb,
    /// The programs `umoci` and `skopeo`.
    OciTools,
    /// `/dev/fuse`, and a user that may mount its file systems.
    Fuse,
    /// A temporary directory whose files are not only in memory: there, a flush has nothing to write.
    DiskDirectory,
}

impl Requirement {
    /// Returns the subject of a message, and the way to get it.
    fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Root => ("root", "run the tests as root"),
            Self::IoUring => (
                "io_uring",
                "set the sysctl kernel.io_uring_disabled to 0, and permit io_uring_setup in the seccomp filter of the container",
            ),
            Self::LoopDevice => (
                "a free loop device",
                "run the tests as root on a host with /dev/loop-control, and install losetup (package mount)",
            ),
            Self::MountNamespace => (
                "a mount namespace",
                "run the tests as root, in a container with CAP_SYS_ADMIN",
            ),
            Self::NetworkNamespace => (
                "a network namespace with a tap",
                "run the tests as root on a host with /dev/net/tun, and install ip (package iproute2)",
            ),
            Self::Nftables => (
                "nftables",
                "run the tests as root on a host with nf_tables, and install nft (package nftables)",
            ),
            Self::Passt => ("passt", "install passt (package passt)"),
            Self::Strace => ("strace", "install strace (package strace)"),
            Self::Gdb => ("gdb", "install gdb (package gdb)"),
            Self::OciTools => (
                "umoci and skopeo",
                "install umoci and skopeo (packages umoci and skopeo)",
            ),
            Self::Fuse => (
                "FUSE",
                "load the module fuse, and run the tests as root with /dev/fuse",
            ),
            Self::DiskDirectory => (
                "a temporary directory on a disk",
                "set TMPDIR to a directory of a file system that is not in memory",
            ),
        }
    }

    /// Fails if the host does not meet the requirement.
    fn probe(self) -> io::Result<()> {
        match self {
            Self::Root => check_root(),
            Self::IoUring => probe_uring(),
            Self::LoopDevice => probe_loop_device(),
            Self::MountNamespace => unshare(libc::CLONE_NEWNS),
            Self::NetworkNamespace => {
                unshare(libc::CLONE_NEWNET)?;
                open_device(Path::new("/dev/net/tun"))?;
                run(Command::new("ip").arg("link")).map(drop)
            }
            Self::Nftables => {
                run(Command::new("unshare").args(["--net", "nft", "list", "ruleset"])).map(drop)
            }
            Self::Passt => run(Command::new("passt").arg("--version")).map(drop),
            Self::Strace => run(Command::new("strace").arg("--version")).map(drop),
            Self::Gdb => run(Command::new("gdb").arg("--version")).map(drop),
            Self::OciTools => {
                run(Command::new("umoci").arg("--version"))?;
                run(Command::new("skopeo").arg("--version")).map(drop)
            }
            Self::Fuse => {
                unshare(libc::CLONE_NEWNS)?;
                open_device(Path::new("/dev/fuse")).map(drop)
            }
            Self::DiskDirectory => check_on_disk(&env::temp_dir()),
        }
    }
}

/// Returns true if the host meets `requirement`. Otherwise skips the calling test as [`skip`] does; the test must then return.
///
/// # Panics
/// Panics as [`skip`] does.
#[must_use = "a test without its requirement must return"]
#[track_caller]
pub fn require(requirement: Requirement) -> bool {
    static PROBED: Mutex<BTreeMap<Requirement, Option<String>>> = Mutex::new(BTreeMap::new());
    let cause = PROBED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(requirement)
        .or_insert_with(|| requirement.probe().err().map(|error| error.to_string()))
        .clone();
    let Some(cause) = cause else { return true };
    let (subject, way_out) = requirement.describe();
    skip(&format!("{subject} ({cause})"), way_out);
    false
}

/// Reports that the calling test does not run, or only in part, because the host lacks `missing`. `way_out` is the way to get it.
///
/// The report goes to stderr, which libtest does not capture here. At its end the test program prints the number of reports.
///
/// # Panics
/// Panics with the report if the environment variable `MAYFLY_TESTS` is `all`, as in CI.
#[track_caller]
pub fn skip(missing: &str, way_out: &str) {
    let location = Location::caller();
    let thread = thread::current();
    // libtest names the thread of a test after it.
    let test = thread
        .name()
        .filter(|name| *name != "main")
        .unwrap_or(location.file());
    let reason = format!("needs {missing}; {way_out}");
    let is_all = is_all(env::var(TESTS).ok().as_deref());
    assert!(
        !is_all,
        "{TESTS}=all requires each test to run, and this one {reason}"
    );
    let line = format!(
        "skipped: {test}: {reason} ({}:{})\n",
        location.file(),
        location.line()
    );
    let _ = io::stderr().write_all(line.as_bytes());
    count_skip();
    if let Some(path) = env::var_os(SKIPPED) {
        // One write: test programs may run concurrently.
        let result = OpenOptions::new().append(true).create(true).open(&path);
        let result = result.and_then(|mut file| file.write_all(line.as_bytes()));
        result.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}

/// Returns true if `value` of `MAYFLY_TESTS` demands all tests.
fn is_all(value: Option<&str>) -> bool {
    match value {
        None | Some("") => false,
        Some("all") => true,
        Some(other) => panic!("{TESTS} is {other:?}; set it to \"all\", or unset it"),
    }
}

/// Counts a report. The exit of the process prints the number.
fn count_skip() {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    static REGISTER: Once = Once::new();
    extern "C" fn print() {
        let count = COUNT.load(Ordering::Relaxed);
        let line = format!("{count} skipped for lack of a requirement; {TESTS}=all fails instead\n");
        // SAFETY: `line` is valid for reads of its length.
        unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    REGISTER.call_once(|| {
        // SAFETY: the function is valid for the life of the process. It uses no thread-local state, which may be gone at exit.
        let result = unsafe { libc::atexit(print) };
        assert_eq!(result, 0, "cannot register a function for the exit");
    });
}

fn check_root() -> io::Result<()> {
    // SAFETY: the call has no arguments.
    match unsafe { libc::geteuid() } {
        0 => Ok(()),
        user => Err(io::Error::other(format!("the user is {user}"))),
    }
}

fn probe_uring() -> io::Result<()> {
    // SAFETY: the kernel fails to read its parameters from address 0, and creates nothing.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, ptr::null::<u8>()) };
    let error = io::Error::last_os_error();
    // The permission check precedes the read: a permitted call fails with EFAULT.
    if error.raw_os_error() == Some(libc::EFAULT) {
        Ok(())
    } else {
        Err(error)
    }
}

fn probe_loop_device() -> io::Result<()> {
    let path = run(Command::new("losetup").arg("--find"))?;
    open_device(Path::new(path.trim())).map(drop)
}

/// Type of ramfs in linux/magic.h.
const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;

/// Fails if the files of `directory` are in memory.
fn check_on_disk(directory: &Path) -> io::Result<()> {
    const TYPES_IN_MEMORY: [libc::c_long; 2] = [libc::TMPFS_MAGIC, RAMFS_MAGIC];
    let named = |error: io::Error| io::Error::other(format!("{}: {error}", directory.display()));
    let file = File::open(directory).map_err(named)?;
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `status` is valid for the write of the structure.
    if unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) } != 0 {
        return Err(named(io::Error::last_os_error()));
    }
    // SAFETY: the successful call has written the structure.
    let status = unsafe { status.assume_init() };
    if TYPES_IN_MEMORY.contains(&status.f_type) {
        return Err(named(io::Error::other("tmpfs or ramfs")));
    }
    Ok(())
}

fn open_device(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let named = |error| io::Error::other(format!("{}: {error}", path.display()));
    options.open(path).map_err(named)
}

/// Creates the `namespaces` for a thread that then ends.
fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    let thread = thread::spawn(move || {
        // SAFETY: the call takes no pointer, and changes only this thread.
        match unsafe { libc::unshare(namespaces) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    });
    crate::join(thread)
}

/// Runs `command`, and returns its stdout.
fn run(command: &mut Command) -> io::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn();
    let child = child.map_err(|error| io::Error::other(format!("{name}: {error}")))?;
    let output = crate::finish(child);
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("{name}: {}", printed.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use super::{SKIPPED, TESTS, check_on_disk, is_all, skip};
    use crate::Directory;

    /// Name of the test below that another one runs in a process of its own.
    const SKIPPING: &str = "requirement::tests::test_without_requirement";

    #[test]
    #[ignore = "run by skipped_test_is_reported_and_fails_in_ci"]
    fn test_without_requirement() {
        skip("a unicorn", "breed one");
    }

    #[test]
    fn skipped_test_is_reported_and_fails_in_ci() {
        let directory = Directory::new();
        let list = directory.path("skipped");
        let run = |value: &str| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", SKIPPING, "--ignored"])
                .env(TESTS, value)
                .env(SKIPPED, &list);
            let output = crate::run(&mut command);
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8(text).unwrap())
        };
        let (passed, printed) = run("");
        let line = format!("skipped: {SKIPPING}: needs a unicorn; breed one (");
        assert!(passed && printed.contains(&line), "{printed}");
        assert!(
            printed.contains("1 skipped for lack of a requirement"),
            "{printed}"
        );
        assert!(fs::read_to_string(&list).unwrap().starts_with(&line));

        let (passed, printed) = run("all");
        assert!(!passed, "{printed}");
        assert!(
            printed.contains(
                "MAYFLY_TESTS=all requires each test to run, and this one needs a unicorn; breed one"
            ),
            "{printed}"
        );
        let (passed, printed) = run("ALL");
        assert!(
            !passed && printed.contains("MAYFLY_TESTS is \"ALL\""),
            "{printed}"
        );
    }

    #[test]
    fn directory_in_memory_is_not_on_disk() {
        // SAFETY: the name ends in a NUL. The call creates a descriptor of a file in tmpfs.
        let file = unsafe { libc::memfd_create(c"file".as_ptr(), 0) };
        let path = format!("/proc/self/fd/{file}");
        let error = check_on_disk(Path::new(&path)).unwrap_err();
        assert_eq!(error.to_string(), format!("{path}: tmpfs or ramfs"));
        check_on_disk(Path::new("/proc")).unwrap();
    }

    #[test]
    fn only_all_demands_all_tests() {
        assert_eq!([None, Some(""), Some("all")].map(is_all), [false, false, true]);
    }
}
