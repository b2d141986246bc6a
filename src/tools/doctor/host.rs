//! The checks of a host.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use vmm::ErrorChain;
use vmm::arch::{Native, Platform};
use vmm::config::{HostMemory, MAX_VCPUS, MemorySize, VmConfig};
use vmm::kvm;
use vmm::machine::PreparedVm;
use vmm::timeline::Timeline;

use super::check::{Check, State};
use crate::sys;

/// Names of the checks without which no guest runs.
pub const NECESSARY: [&str; 2] = ["kvm", "vm"];

/// Bit of `CAP_NET_ADMIN` in a set of capabilities (capabilities(7)).
const NET_ADMIN: u32 = 12;
/// Search path of execvp(3) without PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// Root of the cgroup file system.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Available memory below which a guest of the default size may find none, in bytes.
const LITTLE_MEMORY: u64 = 256 << 20;

/// Returns the release of the kernel.
pub fn kernel() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match text.trim() {
        "" => "unknown".into(),
        release => release.into(),
    }
}

/// Makes all checks.
pub fn checks() -> Vec<Check> {
    let kvm = check_kvm();
    let vm = match kvm.state {
        State::Ok => check_vm(),
        _ => Check::missing("vm", "cannot be created without kvm", "see kvm"),
    };
    vec![
        kvm,
        vm,
        check_memory(
            &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
            &fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default(),
            cgroup_limit(),
            sys::address_space_limit(),
        ),
        check_rights(
            sys::user(),
            &fs::read_to_string("/proc/self/status").unwrap_or_default(),
            &fs::read_to_string("/proc/self/uid_map").unwrap_or_default(),
        ),
        check_tun(&File::options().read(true).write(true).open("/dev/net/tun")),
        check_io_uring(&sys::probe_uring()),
        check_userfaultfd(),
        check_landlock(&sys::landlock_version()),
        check_seccomp(&sys::probe_seccomp()),
        check_cgroups(&fs::read_to_string(Path::new(CGROUPS).join("cgroup.controllers"))),
        check_huge_pages(&fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")),
        check_passt(
            find_program("passt", env::var_os("PATH")),
            has_default_route(
                fs::read_to_string("/proc/net/route").ok().as_deref(),
                fs::read_to_string("/proc/net/ipv6_route").ok().as_deref(),
            ),
        ),
    ]
}

/// Returns a detail and a remedy from an error message, which has its way out after a semicolon.
fn split_message(message: &str) -> (String, String) {
    match message.split_once("; ") {
        Some((cause, remedy)) => (cause.into(), remedy.into()),
        None => (message.into(), "see the log of the kernel: dmesg".into()),
    }
}

fn check_kvm() -> Check {
    match kvm::open(Native::CAPABILITIES) {
        Ok(kvm) => Check::ok(
            "kvm",
            format!(
                "API version {}, all required capabilities, at most {} vCPUs",
                kvm.get_api_version(),
                kvm.get_max_vcpus().min(usize::from(MAX_VCPUS))
            ),
        ),
        Err(error) => {
            let (detail, remedy) = split_message(&ErrorChain(&error).to_string());
            Check::missing("kvm", detail, remedy)
        }
    }
}

/// Creates a VM as a start does, with memory, interrupt controllers and a vCPU.
fn check_vm() -> Check {
    let config = VmConfig {
        memory: MemorySize::MIN,
        layout: Native::DEFAULT_LAYOUT,
        ..VmConfig::new(PathBuf::new())
    };
    let timeline = Arc::new(Timeline::new(Instant::now(), false));
    let failed = |message: String| {
        let (detail, remedy) = split_message(&message);
        Check::missing("vm", detail, remedy)
    };
    match config.check(&HostMemory::this()) {
        Err(error) => failed(ErrorChain(&error).to_string()),
        Ok(spec) => match PreparedVm::with_memory(spec, &timeline) {
            Err(error) => failed(ErrorChain(&error).to_string()),
            Ok(_) => Check::ok("vm", "created with memory, interrupt controllers and a vCPU"),
        },
    }
}

/// Returns the number of bytes after `key` of `/proc/meminfo`.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    number.checked_mul(1024)
}

/// Returns the lowest memory limit of the cgroups of this process in bytes.
fn cgroup_limit() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limits = Path::new(path).ancestors().filter_map(|directory| {
        let file = Path::new(CGROUPS).join(directory).join("memory.max");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    limits.min()
}

fn check_memory(
    meminfo_text: &str,
    overcommit: &str,
    cgroup: Option<u64>,
    address_space: Option<u64>,
) -> Check {
    let mib = |bytes: u64| bytes >> 20;
    let Some(available) = meminfo(meminfo_text, "MemAvailable:") else {
        return Check::limited(
            "memory",
            "/proc/meminfo is not readable",
            "mount /proc to see the available memory",
        );
    };
    let detail = format!("{} MiB available", mib(available));
    if let Some(limit) = address_space {
        let detail = format!(
            "{detail}; the address space of a process is limited to {} MiB",
            mib(limit)
        );
        return Check::limited(
            "memory",
            detail,
            "guests need more address space than memory: run ulimit -v unlimited",
        );
    }
    if let Some(limit) = cgroup.filter(|limit| *limit < available) {
        let detail = format!(
            "{detail}, of which the cgroup of this process permits {} MiB",
            mib(limit)
        );
        return Check::limited(
            "memory",
            detail,
            "guests of this cgroup share its memory: raise memory.max for more",
        );
    }
    if overcommit.trim() == "2" {
        let remedy =
            "the memory of guests counts in full, touched or not: set the sysctl vm.overcommit_memory to 0";
        return Check::limited("memory", format!("{detail}, without overcommitment"), remedy);
    }
    if available < LITTLE_MEMORY {
        return Check::limited(
            "memory",
            detail,
            "start small guests (--memory), or end other programs",
        );
    }
    Check::ok("memory", detail)
}

/// Returns true if `status`, the text of `/proc/self/status`, has the effective capability `bit`.
fn has_capability(status: &str, bit: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    set.is_some_and(|set| set >> bit & 1 == 1)
}

/// Returns true if `uid_map`, the text of `/proc/self/uid_map`, is that of a user namespace below the first one.
fn is_user_namespace(uid_map: &str) -> bool {
    let fields: Vec<&str> = uid_map.split_whitespace().collect();
    !fields.is_empty() && fields != ["0", "0", "4294967295"]
}

fn check_rights(user: u32, status: &str, uid_map: &str) -> Check {
    match (user, has_capability(status, NET_ADMIN)) {
        (0, _) if is_user_namespace(uid_map) => Check::limited(
            "rights",
            "root of a user namespace",
            "mayfly-jailer, limits of mayfly standby and taps outside of the namespace require root of the host: run as that user, or create \
             taps in advance",
        ),
        (0, true) => Check::ok("rights", "root"),
        (0, false) => Check::limited(
            "rights",
            "root without CAP_NET_ADMIN",
            "mayfly creates no tap and mayfly standby no route: add the capability, or create taps in advance",
        ),
        _ => Check::limited(
            "rights",
            format!("user {user}"),
            "mayfly-jailer, shared networks and limits of mayfly standby require root; create taps for this user in advance: ip tuntap add \
             NAME mode tap user USER",
        ),
    }
}

fn check_tun(opened: &io::Result<File>) -> Check {
    match opened {
        Ok(_) => Check::ok("tun", "/dev/net/tun can be opened"),
        Err(error) => Check::missing(
            "tun",
            format!("cannot open /dev/net/tun: {error}"),
            match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "--net tap:NAME fails: give this user access to /dev/net/tun, or use --net user"
                }
                _ => "--net tap:NAME fails: load the module by modprobe tun, or use --net user",
            },
        ),
    }
}

fn check_io_uring(probed: &io::Result<()>) -> Check {
    match probed {
        Ok(()) => Check::ok("io_uring", "rings can be created"),
        Err(error) => Check::missing(
            "io_uring",
            format!("cannot create a ring: {error}"),
            "drives with engine=async use synchronous I/O: set the sysctl kernel.io_uring_disabled to 0, or permit io_uring_setup in the \
             filter of the container",
        ),
    }
}

fn check_userfaultfd() -> Check {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd");
    if device.is_ok() {
        return Check::ok("userfaultfd", "/dev/userfaultfd can be opened");
    }
    match (sys::userfaultfd(true), sys::userfaultfd(false)) {
        (Ok(_), _) => Check::ok("userfaultfd", "for faults of the kernel too"),
        (Err(_), Ok(_)) => Check::limited(
            "userfaultfd",
            "only for faults of user space",
            "memory from a fault handler (Uffd) needs more: give access to /dev/userfaultfd, or set the sysctl \
             vm.unprivileged_userfaultfd to 1",
        ),
        (_, Err(error)) => Check::missing(
            "userfaultfd",
            format!("cannot create a descriptor: {error}"),
            "memory from a fault handler (Uffd) fails, and track_dirty_pages uses the dirty log: use a kernel with CONFIG_USERFAULTFD, or \
             permit userfaultfd in the filter of the container",
        ),
    }
}

fn check_landlock(version: &io::Result<i64>) -> Check {
    match version {
        Ok(version) => Check::ok("landlock", format!("version {version}")),
        Err(error) => Check::missing(
            "landlock",
            format!("cannot be used: {error}"),
            "nothing restricts the files of a process: use Linux 5.13 or later with landlock in the boot parameter lsm=, or mayfly-jailer",
        ),
    }
}

fn check_seccomp(probed: &io::Result<()>) -> Check {
    match probed {
        Ok(()) => Check::ok("seccomp", "filters are available"),
        Err(error) => Check::missing(
            "seccomp",
            format!("cannot be used: {error}"),
            "use a kernel with CONFIG_SECCOMP_FILTER, or run guests that you trust with --no-seccomp",
        ),
    }
}

fn check_cgroups(controllers: &io::Result<String>) -> Check {
    let present = match controllers {
        Ok(present) => present,
        Err(error) => {
            return Check::missing(
                "cgroups",
                format!("cannot read {CGROUPS}/cgroup.controllers: {error}"),
                "limits of mayfly standby need version 2: boot with systemd.unified_cgroup_hierarchy=1; mayfly-jailer can use version 1",
            );
        }
    };
    let lacks = |name: &&str| !present.split_whitespace().any(|present| present == *name);
    let missing: Vec<&str> = ["cpu", "io", "memory", "pids"]
        .into_iter()
        .filter(lacks)
        .collect();
    if missing.is_empty() {
        return Check::ok("cgroups", "version 2 with cpu, io, memory and pids");
    }
    Check::limited(
        "cgroups",
        format!("version 2 without {}", missing.join(", ")),
        "limits by these controllers fail: enable them in cgroup.subtree_control of the parent",
    )
}

fn check_huge_pages(enabled: &io::Result<String>) -> Check {
    let remedy = "huge_pages of PUT /machine-config has no effect: write madvise to /sys/kernel/mm/transparent_hugepage/enabled";
    match enabled {
        Ok(text) if text.contains("[never]") => {
            Check::missing("huge pages", "transparent ones are off", remedy)
        }
        Ok(text) => {
            let mode = text.split(['[', ']']).nth(1).unwrap_or("unknown");
            Check::ok("huge pages", format!("transparent ones, by {mode}"))
        }
        Err(error) => Check::missing("huge pages", format!("cannot read their mode: {error}"), remedy),
    }
}

fn check_passt(program: Option<PathBuf>, has_route: bool) -> Check {
    match program {
        Some(path) if has_route => Check::ok("passt", path.display().to_string()),
        Some(path) => Check::limited(
            "passt",
            format!("{}, without a default route", path.display()),
            "--net user fails: connect this host with a network by a default route, or use --net tap:NAME",
        ),
        None => Check::missing(
            "passt",
            "not found in PATH",
            "--net user fails: install the package passt",
        ),
    }
}

/// Returns true if a default route is in `ipv4` or `ipv6`, the texts of `/proc/net/route` and `/proc/net/ipv6_route`, or if both are unknown.
fn has_default_route(ipv4: Option<&str>, ipv6: Option<&str>) -> bool {
    // Interface, destination, gateway, flags, counters, metric and mask.
    let is_ipv4 = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")
    };
    // The interface is the last of ten fields. The kernel has a route for unreachable addresses on the loopback interface.
    let is_ipv6 = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_default = |destination: &&str| destination.bytes().all(|byte| byte == b'0');
        fields.first().is_some_and(is_default) && fields.get(1) == Some(&"00") && fields.last() != Some(&"lo")
    };
    let is_unknown = ipv4.is_none() && ipv6.is_none();
    is_unknown
        || ipv4.unwrap_or_default().lines().any(is_ipv4)
        || ipv6.unwrap_or_default().lines().any(is_ipv6)
}

/// Returns the path of the program `name` in `path`, as execvp(3) finds it.
fn find_program(name: &str, path: Option<OsString>) -> Option<PathBuf> {
    let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
    let mut candidates = env::split_paths(&path).map(|directory| directory.join(name));
    candidates.find(|candidate| candidate.is_file() && sys::is_executable(candidate))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::fs::PermissionsExt;

    use super::{
        Check, State, check_cgroups, check_huge_pages, check_io_uring, check_landlock, check_memory,
        check_passt, check_rights, check_seccomp, check_tun, find_program, has_default_route, split_message,
    };

    fn denied<T>() -> io::Result<T> {
        Err(io::Error::from_raw_os_error(libc::EACCES))
    }

    /// Expects a state, and a text in the detail or in the remedy.
    fn expect(check: &Check, state: State, text: &str) {
        assert_eq!(check.state, state, "{check:?}");
        let all = format!("{}: {}", check.detail, check.remedy.clone().unwrap_or_default());
        assert!(all.contains(text), "{all}");
    }

    #[test]
    fn memory_has_limits() {
        let plenty = "MemTotal: 9 kB\nMemAvailable:    4194304 kB\n";
        expect(
            &check_memory(plenty, "0\n", None, None),
            State::Ok,
            "4096 MiB available",
        );
        expect(
            &check_memory(plenty, "0", Some(1 << 30), None),
            State::Limited,
            "permits 1024 MiB",
        );
        expect(
            &check_memory(plenty, "0", Some(1 << 40), None),
            State::Ok,
            "4096 MiB",
        );
        expect(
            &check_memory(plenty, "0", None, Some(1 << 30)),
            State::Limited,
            "ulimit -v",
        );
        expect(
            &check_memory(plenty, "2\n", None, None),
            State::Limited,
            "vm.overcommit_memory",
        );
        expect(
            &check_memory("MemAvailable: 1024 kB\n", "0", None, None),
            State::Limited,
            "--memory",
        );
        expect(&check_memory("", "0", None, None), State::Limited, "mount /proc");
    }

    #[test]
    fn rights_depend_on_user_and_capability() {
        let all = "CapInh:\t0\nCapEff:\t000001ffffffffff\n";
        let host = "         0          0 4294967295\n";
        expect(&check_rights(0, all, host), State::Ok, "root");
        expect(&check_rights(0, all, ""), State::Ok, "root");
        expect(
            &check_rights(0, all, "         0       1000          1\n"),
            State::Limited,
            "root of a user namespace",
        );
        expect(
            &check_rights(0, "CapEff:\t0000000000000001\n", host),
            State::Limited,
            "CAP_NET_ADMIN",
        );
        expect(
            &check_rights(1000, "CapEff:\t0\n", host),
            State::Limited,
            "user 1000",
        );
    }

    #[test]
    fn each_missing_part_has_its_remedy() {
        expect(&check_tun(&denied()), State::Missing, "give this user access");
        let absent = Err(io::Error::from_raw_os_error(libc::ENOENT));
        expect(&check_tun(&absent), State::Missing, "modprobe tun");
        expect(
            &check_io_uring(&denied()),
            State::Missing,
            "kernel.io_uring_disabled",
        );
        expect(&check_io_uring(&Ok(())), State::Ok, "rings");
        expect(&check_landlock(&denied()), State::Missing, "Linux 5.13");
        expect(&check_landlock(&Ok(7)), State::Ok, "version 7");
        expect(&check_seccomp(&denied()), State::Missing, "CONFIG_SECCOMP_FILTER");
        expect(&check_seccomp(&Ok(())), State::Ok, "filters");
        expect(
            &check_passt(None, true),
            State::Missing,
            "install the package passt",
        );
        expect(
            &check_passt(Some("/bin/passt".into()), true),
            State::Ok,
            "/bin/passt",
        );
        expect(
            &check_passt(Some("/bin/passt".into()), false),
            State::Limited,
            "default route",
        );
    }

    #[test]
    fn program_is_executable_file_in_search_path() {
        let directory = scratch::Directory::new();
        let path = directory.write("passt", "");
        let found = || find_program("passt", Some(directory.root().into()));
        assert_eq!(found(), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(found(), Some(directory.path("passt")));
        assert_eq!(find_program("passt", Some("/nonexistent".into())), None);
        let shell = find_program("sh", None).unwrap();
        assert!(
            shell.starts_with("/bin") || shell.starts_with("/usr/bin"),
            "{}",
            shell.display()
        );
    }

    #[test]
    fn default_route_has_no_destination() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let own = format!("{head}eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n");
        let default = format!("{own}eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n");
        let zero = "0".repeat(32);
        let ipv6 = |interface: &str| {
            format!(
                "{zero} 00 {zero} 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003     {interface}\n"
            )
        };
        assert!(has_default_route(Some(&default), Some("")));
        assert!(has_default_route(Some(&own), Some(&ipv6("eth0"))));
        assert!(!has_default_route(Some(&own), Some(&ipv6("lo"))));
        assert!(!has_default_route(Some(head), None));
        assert!(has_default_route(None, None));
    }

    #[test]
    fn cgroups_need_version_2_and_controllers() {
        expect(
            &check_cgroups(&Ok("cpuset cpu io memory pids\n".into())),
            State::Ok,
            "version 2",
        );
        expect(
            &check_cgroups(&Ok("cpuset cpu\n".into())),
            State::Limited,
            "without io, memory, pids",
        );
        expect(
            &check_cgroups(&denied()),
            State::Missing,
            "unified_cgroup_hierarchy",
        );
    }

    #[test]
    fn huge_pages_may_be_off() {
        let mode = |text: &str| check_huge_pages(&Ok(text.into()));
        expect(&mode("always [madvise] never\n"), State::Ok, "by madvise");
        expect(&mode("always madvise [never]\n"), State::Missing, "write madvise");
        expect(&check_huge_pages(&denied()), State::Missing, "cannot read");
    }

    #[test]
    fn error_message_has_its_way_out_after_a_semicolon() {
        assert_eq!(split_message("a: b; c; d"), ("a: b".into(), "c; d".into()));
        assert_eq!(split_message("a").1, "see the log of the kernel: dmesg");
    }
}
