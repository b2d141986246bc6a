//! Seccomp filters against the calls of mayfly: each call has a rule, and each rule has a use.
//!
//! A few other tests of this program make nearly all calls. Each runs in a process of its own, with `mayfly.sh` in place of mayfly: first
//! under strace, which records the rules that its calls need; then without one rule at a time, which must make it fail.
//!
//! | module | contents |
//! |---|---|
//! | `rules` | rules, and files of filters that lack one |
//! | `trace` | calls in files of strace |
//! | `source`, `tree` | compiler of the filters, of the program |

mod rules;
#[allow(dead_code, reason = "the unit tests of the filters use the rest")]
#[path = "../../../src/filters/source.rs"]
mod source;
mod trace;
#[path = "../../../src/filters/tree.rs"]
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rules::{Programs, Rule};
use scratch::{Directory, KillOnDrop, Requirement};
use trace::Usage;

use crate::guests::{file, program};

/// Tests that together use nearly all rules, in little time.
const SCENARIOS: &[&str] = &[
    "api::addresses::second_host_with_address_is_reported",
    "api::change::block_device_discards_and_is_replaced",
    "api::change::drive_update_replaces_file",
    "api::change::held_back_requests_of_block_device_complete",
    "api::change::held_back_requests_of_cold_file_complete",
    "api::change::interface_update_replaces_rate_limiter",
    "api::change::update_to_disk_in_use_is_rejected",
    "api::clones::shared_drive_is_written_by_several_vms",
    "api::identity::unresumed_clone_writes_no_record",
    "api::lifecycle::guest_exit_determines_exit_status",
    "api::malformed::invalid_request_gets_its_fault_message",
    "api::output::serial_output_beyond_limit_is_dropped_and_counted",
    "api::output::sighup_reopens_files",
    "api::replay::kraftkit",
    "api::roundtrip::clock::api_load_with_clock_realtime_advances_guest_time",
    "api::slow_disk::slow_requests_complete",
    "api::slow_disk::stuck_disk_of_serial_output_delays_no_answer",
    "api::snapshot::devices::truncated_memory_file_ends_mayfly_with_its_name",
    "api::snapshot::rejected::create_with_invalid_paths_keeps_guest",
    "api::snapshot::relative_paths_are_in_working_directory",
    "api::snapshot::snapshot_with_kernel_irqchip_loads_and_is_repeated",
    "api::snapshot_cli::shell::inherited_tap_passes_to_shell",
    "api::snapshot_cli::shell::snapshot_continues_in_shell",
    "api::snapshot_cli::shell::tracked_snapshot_uses_vm_of_shell",
    "api::snapshot_cli::working_set::cold_memory_file_is_read_ahead",
    "api::status::guest_that_waits_for_interrupts_is_not_reported",
    "api::suspend::idle_guest_is_suspended_when_ready",
    "api::suspend::requested_suspend_loses_no_tick",
    "api::suspend::settings_apply_before_and_after_start_and_load",
    "api::suspend::shell_loads_and_suspends_generations",
    "api::suspend::suspend_in_progress_is_cancelled",
    "api::tracking::diff_of_restored_vm_without_proc_holds_changes",
    "api::tracking::repeated_diff_keeps_contents",
    "api::uffd::paused_guest_touches_few_pages",
    "attached::api_connects_console_before_start",
    "attached::clients_attach_and_detach_while_guest_runs",
    "command::triple_fault_is_reported",
    "console::escape_key_ends_paused_guest",
    "console::shell_adopts_terminal_of_client",
    "debugger::attach::running_vm_is_debugged_over_its_api_socket",
    "isolation::api_opens_files_in_allowed_directories_alone",
    "network::guest_with_kernel_irqchip_serves_page",
    "network::passt_ends_with_vm",
    "network::throttled_reply_reaches_unix_socket",
    "programs::drives_with_hostile_guest",
    "programs::input_by_ioapic",
    "programs::input_by_kernel_irqchip",
    "programs::level_triggered_interrupts_by_ioapic",
    "programs::timer_by_pic",
    "virtio::drive_works_by_kernel_irqchip_interrupts",
    "virtio::flush_of_large_disk_completes",
];

/// Rules whose use depends on more than a scenario can set up, and the reasons. A scenario may use one by chance.
const UNUSED_RULES: &[(&str, &str)] = &[
    ("start ioctl KVM_IRQ_LINE", KERNEL_IRQCHIP),
    ("start ioctl KVM_SET_GSI_ROUTING", LEVEL),
    ("start ioctl KVM_GET_XSAVE2", HOST),
    ("vcpu ioctl KVM_GET_XSAVE2", HOST),
    ("start ioctl KVM_SET_TSC_KHZ", HOST),
    ("start ioctl KVM_SET_SREGS2", "the guest uses PAE paging"),
    ("start clock_nanosleep", TIMER),
    ("vcpu clock_nanosleep", TIMER),
    ("vcpu clock_gettime", VDSO),
    ("worker clock_gettime", VDSO),
    ("start restart_syscall", STOPPED),
    ("vmm restart_syscall", STOPPED),
    ("vcpu restart_syscall", STOPPED),
    ("worker restart_syscall", STOPPED),
    ("start mremap", ALLOCATION),
    ("vmm mremap", ALLOCATION),
    ("vcpu mremap", ALLOCATION),
    ("worker brk", ALLOCATION),
    ("worker close", "the thread of a drive outlives the drive"),
    ("worker mmap not executable", ALLOCATION),
    ("worker mprotect not executable", ALLOCATION),
    ("worker munmap", ALLOCATION),
    ("start pause", END),
    ("vmm pause", END),
    ("vcpu pause", END),
    ("vcpu exit_group", END),
    ("worker exit_group", END),
    ("vmm rt_sigreturn", END),
    ("worker rt_sigreturn", END),
    ("vcpu ioctl TCGETS", END),
    ("vcpu ioctl TCSETS", END),
    ("vcpu ioctl TIOCGPGRP", END),
    ("vcpu getpgrp", END),
    ("start fstat", LIBRARY),
    ("vmm fstat", LIBRARY),
    ("start getcwd", LINK),
    ("vmm getcwd", LINK),
    (
        "start getsockopt",
        "the API socket of a client of a shell is in use",
    ),
    ("vmm ioctl BLKDISCARD", EVENT_LOOP),
    ("vmm cachestat", EVENT_LOOP),
    ("vmm io_uring_enter", EVENT_LOOP),
    ("worker pread64", "the disk is slow: `api::slow_disk` has one"),
    ("start fcntl F_GETFD", DEBUG),
    ("vmm fcntl F_GETFD", DEBUG),
    ("vcpu fcntl F_GETFD", DEBUG),
    ("worker fcntl F_GETFD", DEBUG),
    ("console clock_gettime", VDSO),
    (
        "console futex",
        "another thread has the lock of the heap at that moment",
    ),
    ("console restart_syscall", STOPPED),
    ("console brk", ALLOCATION),
    ("console mmap not executable", ALLOCATION),
    ("console mprotect not executable", ALLOCATION),
    ("console munmap", ALLOCATION),
    ("console exit_group", END),
    ("console rt_sigreturn", END),
    ("console fcntl F_GETFD", DEBUG),
];

// Reasons of `UNUSED_RULES`.
const ALLOCATION: &str = "the heap has no room at that moment";
const DEBUG: &str = "a debug build makes the call";
const END: &str = "the process ends by a signal, an abort or for lack of memory, on this thread";
const EVENT_LOOP: &str = "the event loop executes requests that a rate limiter has held back";
const HOST: &str = "the host has wide registers, or the snapshot is of a host with another clock";
const KERNEL_IRQCHIP: &str = "input of a guest with --irqchip kernel that was loaded by the API";
const LEVEL: &str = "a guest with level-triggered interrupts by the IOAPIC that was loaded by the API";
const LIBRARY: &str = "another version of the C library lists a directory by this call";
const LINK: &str = "a snapshot replaces a file at a relative link";
const STOPPED: &str = "a signal stops and continues the process in a call with a timeout";
const TIMER: &str = "the timer of a vCPU expires while its state is read";
const VDSO: &str = "the clock of the host is not readable without a system call";

/// Maximum number of calls of which no scenario uses a rule.
const MAX_UNUSED_CALLS: usize = 12;

/// Limit of a scenario that lacks a rule: it may wait for mayfly, which has ended.
const LIMIT: Duration = Duration::from_secs(5);
/// Limit of a scenario that must pass, also under strace.
const FULL_LIMIT: Duration = Duration::from_secs(120);

/// Result of a scenario.
struct Outcome {
    has_passed: bool,
    /// It was killed after its limit.
    is_late: bool,
    printed: String,
}

/// Runs the test `name` of this program in a process of its own, with the filters of the file `filters`, and under strace if `trace` is
/// a directory for its output. Kills it after `limit`.
fn run(name: &str, filters: &Path, trace: Option<&Path>, limit: Duration) -> Outcome {
    let output = Directory::new();
    let printed = fs::File::create(output.path("output")).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    let wrapper = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/local/filters/mayfly.sh");
    command.env("MAYFLY", wrapper).env("MAYFLY_PROGRAM", program());
    let guest = file("hello.elf");
    command.env("MAYFLY_GUESTS", Path::new(&guest).parent().unwrap());
    command.env("MAYFLY_FILTERS", filters);
    if let Some(directory) = trace {
        command.env("MAYFLY_TRACE", directory);
    }
    command
        .stdin(Stdio::null())
        .stderr(printed.try_clone().unwrap())
        .stdout(printed);
    // One that is late ends with its mayfly.
    let mut child = KillOnDrop(command.process_group(0).spawn().unwrap());
    let start = Instant::now();
    let mut status = None;
    while status.is_none() && start.elapsed() < limit {
        thread::sleep(Duration::from_millis(2));
        status = child.0.try_wait().unwrap();
    }
    if status.is_none() {
        let group = i32::try_from(child.0.id()).unwrap();
        // SAFETY: the call takes no pointer. The test has not waited for the leader of the group.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    drop(child);
    let printed = fs::read(output.path("output")).unwrap();
    Outcome {
        has_passed: status.is_some_and(|status| status.success()),
        is_late: status.is_none(),
        printed: String::from_utf8_lossy(&printed).into_owned(),
    }
}

/// Executes `work` for the numbers below `count`, two at a time.
fn for_each(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

/// What the traces of the scenarios show.
struct Recording {
    rules: Vec<Rule>,
    programs: Programs,
    /// Indices of the scenarios that use each rule, the shortest first.
    users: BTreeMap<usize, Vec<usize>>,
    violations: BTreeSet<String>,
    calls: usize,
}

/// Runs the scenario `name` under strace. Returns the directory of its traces, and its duration.
fn record(name: &str, filters: &Path) -> (Directory, Duration) {
    let mut printed = String::new();
    // strace delays the process, which some tests time.
    for attempt in 1..=3 {
        let directory = Directory::new();
        let start = Instant::now();
        let outcome = run(name, filters, Some(directory.root()), FULL_LIMIT);
        let elapsed = start.elapsed();
        printed = outcome.printed;
        if outcome.has_passed {
            match trace::await_end(directory.root()) {
                Ok(()) => return (directory, elapsed),
                Err(unfinished) => printed += &unfinished,
            }
        }
        println!("attempt {attempt} of 3 to record {name} failed: {printed}");
    }
    panic!("{name}: {printed}");
}

/// Maximum number of runs of all scenarios: the thread of some calls, and their moments, vary.
const RECORDINGS: usize = 3;

/// Runs each scenario under strace. Repeats that while a rule without a reason is unused.
static RECORDING: LazyLock<Recording> = LazyLock::new(|| {
    let (rules, programs) = (rules::all(), Programs::compile());
    let complete = Directory::new();
    programs.write(&complete.path("filters"), None);
    let mut recording = Recording {
        rules,
        programs,
        users: BTreeMap::new(),
        violations: BTreeSet::new(),
        calls: 0,
    };
    for number in 1..=RECORDINGS {
        recording.record_all(&complete.path("filters"));
        let unlisted = recording.unlisted();
        if unlisted.is_empty() {
            break;
        }
        println!("recording {number} of {RECORDINGS} has no call by {unlisted:?}");
    }
    recording
});

impl Recording {
    /// Adds the calls of one run of each scenario.
    fn record_all(&mut self, filters: &Path) {
        let recorded = Mutex::new(Vec::new());
        for_each(SCENARIOS.len(), |number| {
            let (directory, elapsed) = record(SCENARIOS[number], filters);
            let usage = Usage::read(directory.root(), &self.rules, &self.programs);
            let mut recorded = recorded.lock().unwrap_or_else(PoisonError::into_inner);
            recorded.push((elapsed, number, usage));
        });
        let mut recorded = recorded.into_inner().unwrap();
        recorded.sort_by_key(|(elapsed, ..)| *elapsed);
        for (_, scenario, usage) in recorded {
            for rule in usage.rules {
                self.users.entry(rule).or_default().push(scenario);
            }
            self.violations.extend(usage.violations);
            self.calls += usage.calls;
        }
    }

    /// Returns the names of the rules without a call that [`UNUSED_RULES`] does not list.
    fn unlisted(&self) -> Vec<String> {
        let listed: BTreeSet<&str> = UNUSED_RULES.iter().map(|(rule, _)| *rule).collect();
        let rules = self.rules.iter().enumerate();
        let unused = rules.filter(|(index, _)| !self.users.contains_key(index));
        let names = unused.map(|(_, rule)| rule.to_string());
        names.filter(|name| !listed.contains(name.as_str())).collect()
    }
}

#[test]
fn traced_calls_and_rules_agree() {
    if !scratch::require(Requirement::Strace) {
        return;
    }
    let recording = &*RECORDING;
    assert!(recording.violations.is_empty(), "{:#?}", recording.violations);
    assert!(recording.calls > 10_000, "{} calls", recording.calls);
    let unlisted = recording.unlisted();
    assert!(
        unlisted.is_empty(),
        "no call by the scenarios: remove the rules, or list them with a reason: {unlisted:#?}"
    );
    let names: BTreeSet<_> = recording.rules.iter().map(Rule::to_string).collect();
    for (name, _) in UNUSED_RULES {
        assert!(names.contains(*name), "no rule {name}");
    }
    let used_calls: BTreeSet<_> = recording
        .users
        .keys()
        .map(|index| &recording.rules[*index].call)
        .collect();
    let calls = recording.rules.iter().map(|rule| &rule.call);
    let unused: BTreeSet<_> = calls.filter(|call| !used_calls.contains(call)).collect();
    assert!(unused.len() <= MAX_UNUSED_CALLS, "{unused:?}");
}

/// Returns true if the scenario `name` fails without `rule`.
fn fails_without(rule: &Rule, name: &str) -> bool {
    let directory = Directory::new();
    let path = directory.path("filters");
    RECORDING.programs.write(&path, Some(rule));
    let outcome = run(name, &path, None, LIMIT);
    let message = format!("refused the system call {} ", rule.call);
    // Output may miss the message: of a process whose stderr is not shown, or that cannot write any more.
    let has_failed = outcome.is_late || outcome.printed.contains(&message);
    !outcome.has_passed && (has_failed || !run(name, &path, None, LIMIT).has_passed)
}

#[test]
fn scenario_fails_without_each_rule() {
    if !scratch::require(Requirement::Strace) {
        return;
    }
    let recording = &*RECORDING;
    let directory = Directory::new();
    let complete = directory.path("filters");
    recording.programs.write(&complete, None);
    for_each(SCENARIOS.len(), |number| {
        let name = SCENARIOS[number];
        let outcome = run(name, &complete, None, FULL_LIMIT);
        assert!(outcome.has_passed, "{name}: {}", outcome.printed);
    });
    let unneeded = Mutex::new(BTreeSet::new());
    let is_rare = |rule: &Rule| UNUSED_RULES.iter().any(|(name, _)| rule.to_string() == *name);
    let users = recording.users.iter();
    let users: Vec<_> = users
        .filter(|(rule, _)| !is_rare(&recording.rules[**rule]))
        .collect();
    for_each(users.len(), |number| {
        let (&rule, scenarios) = users[number];
        let rule = &recording.rules[rule];
        // Threads share some calls, and another one than under strace may make it.
        let is_needed = (0..3).any(|_| {
            scenarios
                .iter()
                .any(|scenario| fails_without(rule, SCENARIOS[*scenario]))
        });
        if !is_needed {
            let mut unneeded = unneeded.lock().unwrap_or_else(PoisonError::into_inner);
            unneeded.insert(rule.to_string());
        }
    });
    let unneeded = unneeded.into_inner().unwrap();
    assert!(unneeded.is_empty(), "no scenario fails without: {unneeded:#?}");
}
