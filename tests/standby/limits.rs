//! Limits of time, processes and memory; shells that fail; file systems that do not respond.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::Supervisor;

/// Limit of a supervisor in seconds that some calls reach, and no wake of a fake program on a busy machine.
pub const TIMEOUT: &str = "5";

/// User of a supervisor that is not root. No other process has it.
pub const USER: u32 = 54_321;

fn failures(supervisor: &Supervisor, cause: &str) -> u64 {
    supervisor.metric(&format!("mayfly_standby_failures_total{{cause=\"{cause}\"}}"))
}

fn reason(supervisor: &Supervisor, id: &str) -> String {
    supervisor.get(id)["reason"].as_str().unwrap().to_owned()
}

#[test]
fn silent_wake_ends_at_its_limit() {
    let supervisor = Supervisor::start(&["--timeout", "1"]);
    supervisor.register("web", json!({}));
    supervisor.set_behavior("silent");
    supervisor.set("web", "wake");
    let reason = supervisor.await_state("web", "failed");
    assert!(reason.contains("did not run in time (--timeout)"), "{reason}");
    assert!(!supervisor.is_alive("web"));
    assert_eq!(failures(&supervisor, "timeout"), 1);
}

#[test]
fn suspend_without_end_is_given_up_at_its_limit() {
    let supervisor = Supervisor::start(&["--timeout", TIMEOUT]);
    supervisor.register("web", json!({}));
    supervisor.set_behavior("hang");
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    supervisor.set("web", "suspend");
    assert_eq!(supervisor.get("web")["state"], "suspending");
    let reason = supervisor.await_state("web", "running");
    assert!(reason.contains("has not ended in time"), "{reason}");
    assert!(supervisor.is_alive("web"));
    assert_eq!(failures(&supervisor, "timeout"), 1);
}

#[test]
fn wake_without_memory_is_given_up_at_its_limit() {
    let supervisor = Supervisor::start(&["--timeout", TIMEOUT, "--memory-limit", "9M"]);
    supervisor.set_behavior("refuse");
    supervisor.register("a", json!({}));
    supervisor.register("b", json!({}));
    supervisor.set("a", "wake");
    supervisor.await_state("a", "running");
    supervisor.set("b", "wake");
    assert!(reason(&supervisor, "b").contains("waits for memory"));
    let reason = supervisor.await_state("b", "suspended");
    assert!(reason.contains("--memory-limit"), "{reason}");
    assert_eq!(failures(&supervisor, "memory"), 1);
    // It has rejected each suspend.
    supervisor.await_state("a", "running");
}

/// Starts a supervisor whose shells end, and wakes its instance after two of them. Returns none if this took so long that a third shell
/// may have got the wake.
fn wake_after_two_shells() -> Option<Supervisor> {
    // Of the supervisor, after the end of a shell.
    const PAUSE: Duration = Duration::from_secs(1);
    let supervisor = Supervisor::start(&["--shells", "1"]);
    supervisor.set_behavior("shells end");
    supervisor.register("web", json!({}));
    let mut last_look = Instant::now();
    scratch::wait_until("two shells end", || {
        let now = Instant::now();
        let have_ended = failures(&supervisor, "shell") >= 2;
        if !have_ended {
            last_look = now;
        }
        have_ended
    });
    supervisor.set("web", "wake");
    (last_look.elapsed() < PAUSE).then_some(supervisor)
}

#[test]
fn shell_that_ends_is_replaced_and_not_used() {
    let supervisor = scratch::wait_for("a wake without a shell", wake_after_two_shells);
    supervisor.await_state("web", "running");
    // Each next shell exists for a moment.
    scratch::wait_until("no shell waits", || {
        supervisor.metric("mayfly_standby_shells") == 0
    });
    assert_eq!(supervisor.metric("mayfly_standby_shell_wakes_total"), 0);
}

/// Returns the lines of /proc of the supervisor's children, also of those that have ended and are not reaped.
fn children(supervisor: &Supervisor) -> Vec<String> {
    let parent = supervisor.pid().to_string();
    let stats = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        // A process may end meanwhile.
        let line = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let (_, fields) = line.rsplit_once(") ")?;
        (fields.split(' ').nth(1) == Some(parent.as_str())).then_some(line)
    });
    stats.collect()
}

/// Returns the number of files in the run directory.
fn count_run_files(supervisor: &Supervisor) -> usize {
    fs::read_dir(supervisor.directory.path("state/run"))
        .unwrap()
        .count()
}

#[test]
fn shells_end_with_the_last_instance_of_their_shape() {
    let supervisor = Supervisor::start(&["--shells", "2"]);
    // They do not end by themselves.
    supervisor.set_behavior("shells stay");
    for id in ["a", "b"] {
        supervisor.register(id, json!({}));
    }
    let count = || supervisor.metric("mayfly_standby_shells");
    scratch::wait_until("two shells wait", || count() == 2);
    supervisor.expect("DELETE", "/instances/a", None);
    assert_eq!((count(), children(&supervisor).len()), (2, 2));
    supervisor.expect("DELETE", "/instances/b", None);
    assert_eq!(count(), 0);
    scratch::wait_until("the shells are reaped", || children(&supervisor).is_empty());
    assert_eq!(count_run_files(&supervisor), 0);
    assert_eq!(failures(&supervisor, "shell"), 0);
}

#[test]
fn killed_process_is_reaped() {
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    supervisor.set_behavior("silent");
    supervisor.set("web", "wake");
    assert_eq!(children(&supervisor).len(), 1);
    supervisor.expect("DELETE", "/instances/web?kill=true", None);
    scratch::wait_until("the process is reaped", || children(&supervisor).is_empty());
}

#[test]
fn process_takes_the_place_of_a_shell_that_refuses() {
    let supervisor = Supervisor::start(&["--shells", "1"]);
    supervisor.set_behavior("shells refuse");
    supervisor.register("web", json!({}));
    scratch::wait_until("a shell waits", || {
        supervisor.metric("mayfly_standby_shells") == 1
    });
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    assert_eq!(supervisor.metric("mayfly_standby_shell_wakes_total"), 1);
    assert_eq!(failures(&supervisor, "shell"), 1);
    assert!(supervisor.log().contains("not this one"), "{}", supervisor.log());
    assert!(supervisor.is_alive("web"));
}

/// Limits the descriptors of the supervisor so that `spare` are free, or many.
fn limit_descriptors(supervisor: &Supervisor, spare: Option<usize>) {
    let limit = spare.map_or(1000, |spare| {
        let open = format!("/proc/{}/fd", supervisor.pid());
        let is_free = |number: &usize| fs::symlink_metadata(format!("{open}/{number}")).is_err();
        1 + (0..).filter(is_free).nth(spare - 1).unwrap_or_default()
    });
    let mut command = Command::new("prlimit");
    command.args([
        format!("--pid={}", supervisor.pid()),
        format!("--nofile={limit}:"),
    ]);
    let output = scratch::run(&mut command);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn wake_waits_for_each_descriptor() {
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    // The client has the first one.
    let mut waits = 0;
    for spare in 1..20 {
        limit_descriptors(&supervisor, Some(spare));
        supervisor.set("web", "wake");
        let is_waiting = || reason(&supervisor, "web").contains("Too many open files");
        let is_running = || supervisor.get("web")["state"] == "running";
        scratch::wait_until("the wake succeeds or waits", || is_waiting() || is_running());
        let has_waited = is_waiting();
        limit_descriptors(&supervisor, None);
        supervisor.await_state("web", "running");
        supervisor.set("web", "suspend");
        supervisor.await_state("web", "suspended");
        if !has_waited {
            break;
        }
        waits += 1;
    }
    assert!((2..19).contains(&waits), "{waits}");
    assert_eq!(failures(&supervisor, "load"), 0);
}

/// Sets the limit of processes of the supervisor's user, as that user: root may lack the right.
fn limit_processes(supervisor: &Supervisor, limit: u32) {
    let mut command = Command::new("prlimit");
    command.args([format!("--pid={}", supervisor.pid()), format!("--nproc={limit}:")]);
    let output = scratch::run(command.uid(USER).gid(USER));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn wake_waits_for_a_process() {
    // SAFETY: the call takes no pointer.
    if unsafe { libc::geteuid() } != 0 {
        return scratch::skip("another user", "run it as root");
    }
    let mut supervisor = Supervisor::start(&["--timeout", TIMEOUT]);
    supervisor.restart_as(USER);
    supervisor.register("a", json!({}));
    supervisor.register("b", json!({}));
    limit_processes(&supervisor, 1);
    supervisor.set("a", "wake");
    assert_eq!(supervisor.get("a")["state"], "waking");
    assert!(reason(&supervisor, "a").contains("raise pid_max, RLIMIT_NPROC"));
    // The next attempt succeeds.
    limit_processes(&supervisor, 100);
    supervisor.await_state("a", "running");
    limit_processes(&supervisor, 1);
    supervisor.set("b", "wake");
    let reason = supervisor.await_state("b", "suspended");
    assert!(reason.contains("raise pid_max, RLIMIT_NPROC"), "{reason}");
    assert_eq!(failures(&supervisor, "start"), 1);
}

#[test]
fn limits_are_those_of_the_cgroup() {
    // Files play the cgroup: no host must have the controllers in version 2.
    let directory = scratch::Directory::new();
    directory.write("cgroup.subtree_control", "cpu memory\n");
    fs::create_dir(directory.path("mayfly-web")).unwrap();
    for name in ["memory.max", "cpu.weight", "cgroup.procs"] {
        directory.write(&format!("mayfly-web/{name}"), "");
    }
    let supervisor = Supervisor::start(&["--cgroup", &directory.text("")]);
    supervisor.register("web", json!({"limits": {"memory_max_mib": 64, "cpu_weight": 7}}));
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    let read = |name: &str| fs::read_to_string(directory.path(&format!("mayfly-web/{name}"))).unwrap();
    assert_eq!(
        (read("memory.max"), read("cpu.weight")),
        ("67108864".into(), "7".into())
    );
    // The child moves itself.
    assert_eq!(read("cgroup.procs").trim_end(), "0");
}

/// File system that responds to no request, until the end of the test.
struct StuckFileSystem {
    directory: CString,
    _device: File,
}

impl StuckFileSystem {
    /// Mounts it in a mount namespace of this thread. Returns nothing without the rights.
    fn mount(directory: &str) -> Option<Self> {
        // SAFETY: the call takes no pointer, and affects this thread and its children only.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return None;
        }
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let (directory, options) = (CString::new(directory).unwrap(), CString::new(options).unwrap());
        let private = libc::MS_PRIVATE | libc::MS_REC;
        // SAFETY: all pointers are null or to constant C strings.
        let is_private =
            unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()) };
        let (path, data) = (directory.as_ptr(), options.as_ptr().cast());
        // SAFETY: all pointers are to C strings that outlive the call.
        let is_mounted = unsafe { libc::mount(c"stuck".as_ptr(), path, c"fuse".as_ptr(), 0, data) };
        (is_private == 0 && is_mounted == 0).then_some(Self {
            directory,
            _device: device,
        })
    }
}

impl Drop for StuckFileSystem {
    fn drop(&mut self) {
        // SAFETY: the pointer is to a C string that outlives the call.
        unsafe { libc::umount2(self.directory.as_ptr(), libc::MNT_DETACH) };
    }
}

#[test]
fn stuck_file_system_delays_only_registrations() {
    let directory = scratch::Directory::new();
    fs::create_dir(directory.path("stuck")).unwrap();
    let Some(file_system) = StuckFileSystem::mount(&directory.text("stuck")) else {
        return scratch::skip("a FUSE file system", "run it as root with /dev/fuse");
    };
    let supervisor = Supervisor::start(&["--timeout", TIMEOUT]);
    supervisor.register("web", json!({}));
    let stuck = json!({"snapshot_path": directory.text("stuck/snapshot")});
    thread::scope(|scope| {
        let put = |id: &'static str, body: Value| {
            let supervisor = &supervisor;
            scope.spawn(move || supervisor.request("PUT", &format!("/instances/{id}"), Some(&body)))
        };
        let first = put("stuck", stuck.clone());
        let next = put("next", supervisor.body(json!({})));
        // Meanwhile a whole wake.
        supervisor.set("web", "wake");
        supervisor.await_state("web", "running");
        assert!(!first.is_finished(), "{:?}", scratch::join(first));
        let (status, body) = scratch::join(first);
        assert_eq!(status, 400);
        let reason = body["fault_message"].as_str().unwrap();
        assert!(
            reason.ends_with("its file system does not respond in time"),
            "{reason}"
        );
        assert_eq!(scratch::join(next).0, 204);
    });
    drop(file_system);
}

#[test]
fn stuck_directory_delays_only_its_instance() {
    let directory = scratch::Directory::new();
    fs::create_dir(directory.path("stuck")).unwrap();
    let Some(file_system) = StuckFileSystem::mount(&directory.text("stuck")) else {
        return scratch::skip("a FUSE file system", "run it as root with /dev/fuse");
    };
    let supervisor = Supervisor::start(&["--timeout", TIMEOUT, "--max-wakes", "1"]);
    supervisor.register("web", json!({}));
    supervisor.register("stuck", json!({"suspend_path": directory.text("stuck/web")}));
    // The next wakes wait for the thread of the first one.
    for attempt in 1..=3 {
        supervisor.set("stuck", "wake");
        supervisor.set("web", "wake");
        supervisor.await_state("web", "running");
        supervisor.set("web", "suspend");
        supervisor.await_state("web", "suspended");
        let reason = supervisor.await_state("stuck", "suspended");
        assert!(reason.contains("not respond"), "{reason}");
        assert_eq!(count_threads(&supervisor), 1, "{attempt}");
    }
    assert_eq!(failures(&supervisor, "timeout"), 1);
    assert_eq!(failures(&supervisor, "start"), 2);
    drop(file_system);
    supervisor.set("stuck", "wake");
    supervisor.await_state("stuck", "running");
    supervisor.set("stuck", "suspend");
    supervisor.await_state("stuck", "suspended");
    assert!(directory.path("stuck/web/current").is_symlink());
    // From its own snapshot.
    supervisor.set("stuck", "wake");
    supervisor.await_state("stuck", "running");
    let start = supervisor.starts().pop().unwrap();
    assert!(
        start.contains(&format!(" restore {} ", directory.text("stuck/web"))),
        "{start}"
    );
}

/// Returns the number of threads of the supervisor that access files.
fn count_threads(supervisor: &Supervisor) -> usize {
    let threads = fs::read_dir(format!("/proc/{}/task", supervisor.pid())).unwrap();
    let names = threads.filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "inspect").count()
}

#[test]
fn fifo_is_no_snapshot() {
    let supervisor = Supervisor::start(&[]);
    fs::remove_file(supervisor.directory.path("snapshot/state")).unwrap();
    supervisor.directory.fifo("snapshot/state");
    let body = supervisor.body(json!({}));
    let reason = supervisor.expect_rejection(400, "PUT", "/instances/web", Some(&body));
    assert!(reason.starts_with("snapshot_path: "), "{reason}");
}
