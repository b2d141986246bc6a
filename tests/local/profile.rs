//! Samples of the guest by function.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use scratch::Directory;
use serde_json::Value;

use crate::api::http::NO_CONTENT;
use crate::api::served::{PAUSED, RESUMED, connect};
use crate::guest::Running;
use crate::guests::{file, program};

/// Samples per second.
const FREQUENCY: &str = "1000";
/// Processor time of a vCPU that a test waits for.
const TIME: Duration = Duration::from_millis(600);

/// A VM with `profile.elf`, its profile and its trace.
struct Profiled {
    directory: Directory,
    running: Running,
    input: ChildStdin,
}

impl Profiled {
    /// Runs the guest with `options` and `arguments` until it has begun its work.
    fn run(options: &[&str], arguments: &[&str]) -> Self {
        let image = file("profile.elf");
        let command = [&["run", &image, "--memory", "16M"], options].concat();
        let mut profiled = Self::start(Directory::new(), &command, arguments);
        profiled.running.expect("profiling\n");
        profiled
    }

    /// Starts mayfly with files in `directory`.
    fn start(directory: Directory, command: &[&str], arguments: &[&str]) -> Self {
        let mut mayfly = Command::new(program());
        mayfly
            .args(command)
            .args(["--profile", &directory.text("profile")]);
        mayfly.args(["--hz", FREQUENCY, "--trace", &directory.text("trace")]);
        if !arguments.is_empty() {
            mayfly.arg("--").args(arguments);
        }
        mayfly.stdin(Stdio::piped());
        let mut running = Running::start(&mut mayfly);
        let input = running.take_input().unwrap();
        Self {
            directory,
            running,
            input,
        }
    }

    fn wait_time(&self, time: Duration) {
        wait_vcpu_time(self.running.id(), time);
    }

    /// Sends the byte that ends the work.
    fn end_work(&mut self) {
        self.input.write_all(b"q").unwrap();
    }

    /// Waits for the exit with `code`. Returns the profile and the messages.
    fn finish(&mut self, code: i32) -> (Folded, String) {
        self.running.expect_exit(code);
        (self.folded(), self.running.read_stderr())
    }

    fn folded(&self) -> Folded {
        Folded::parse(&fs::read_to_string(self.directory.path("profile")).unwrap())
    }

    fn trace(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.path("trace")).unwrap();
        let mut trace: Value = serde_json::from_str(&text).unwrap();
        match trace["traceEvents"].take() {
            Value::Array(events) => events,
            other => panic!("{other}"),
        }
    }
}

/// Waits until each vCPU of `process` has used the processor for `time` more.
pub fn wait_vcpu_time(process: u32, time: Duration) {
    let starts = vcpu_times(process);
    scratch::wait_until("processor time of the vCPUs", || {
        let mut pairs = vcpu_times(process).into_iter().zip(&starts);
        pairs.all(|(now, start)| now >= *start + time)
    });
}

/// Returns the processor time of each vCPU thread, from /proc/PID/task/TID/stat in clock ticks of 10 ms.
fn vcpu_times(process: u32) -> Vec<Duration> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let times = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        let (_, rest) = text.split_once("(fc_vcpu ")?;
        let fields: Vec<&str> = rest.split_once(") ")?.1.split(' ').collect();
        // utime and stime, fields 14 and 15; the first here is field 3.
        let ticks: u64 = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 10))
    });
    times.collect()
}

/// Folded stacks.
struct Folded(Vec<(Vec<String>, u64)>);

impl Folded {
    fn parse(text: &str) -> Self {
        let parse = |line: &str| {
            let (stack, count) = line.rsplit_once(' ').unwrap();
            let functions = stack.split(';').map(str::to_owned).collect();
            (functions, count.parse().unwrap())
        };
        Self(text.lines().map(parse).collect())
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Returns the samples whose stacks end with `functions`.
    fn ending(&self, functions: &[&str]) -> u64 {
        let found = self.0.iter().filter(|(stack, _)| {
            let tail = stack.iter().rev().zip(functions.iter().rev());
            stack.len() >= functions.len() && tail.into_iter().all(|(one, other)| one == other)
        });
        found.map(|(_, count)| count).sum()
    }

    /// Checks that most samples are in the two inner functions at their depths, most of these in the heavier one.
    fn expect_work(&self, caller: &str) {
        let heavy = self.ending(&[caller, "round_number", "heavy", "heavy_middle", "heavy_inner"]);
        let light = self.ending(&[caller, "round_number", "light", "light_inner"]);
        assert!(heavy > light && light > 0, "{heavy} and {light} of {:?}", self.0);
        let roots = self.0.iter().map(|(stack, _)| stack[0].as_str());
        assert!(
            roots.into_iter().all(|root| root == "profile.elf"),
            "{:?}",
            self.0
        );
    }
}

#[test]
fn heavier_function_has_more_samples_at_its_depth() {
    let mut vm = Profiled::run(&[], &[]);
    vm.wait_time(TIME);
    vm.end_work();
    vm.running.expect("ok profile\n");
    let (folded, messages) = vm.finish(0);
    folded.expect_work("guest");
    // A timer that the kernel checks less often than 1000 times a second reports the periods together.
    assert!(folded.total() >= 400, "{} samples", folded.total());
    let path = vm.directory.text("profile");
    let heading = format!(
        "mayfly: profile in {path}: {} samples at 1000 Hz\n",
        folded.total()
    );
    assert!(messages.starts_with(&heading), "{messages}");
    assert!(
        messages.lines().nth(1).unwrap().ends_with("% heavy_inner"),
        "{messages}"
    );

    let events = vm.trace();
    let named = |name: &'static str| events.iter().filter(move |event| event["name"] == name);
    assert!(named("create VM").count() == 1, "a phase");
    let lane = named("thread_name").find(|event| event["args"]["name"] == "vcpu 0 samples");
    let lane = &lane.unwrap()["tid"];
    let ends = |event: &Value| {
        assert_eq!((&event["ph"], &event["tid"]), (&"X".into(), lane));
        let start = event["ts"].as_u64().unwrap();
        (start, start + event["dur"].as_u64().unwrap())
    };
    let outer: Vec<_> = named("heavy").map(ends).collect();
    let inner: Vec<_> = named("heavy_inner").map(ends).collect();
    assert!(!inner.is_empty());
    for (start, end) in &inner {
        let holds = |outer: &(u64, u64)| outer.0 <= *start && outer.1 >= *end;
        assert!(outer.iter().any(holds), "{start} to {end}: {outer:?}");
    }
}

#[test]
fn idle_guest_has_no_samples() {
    let mut vm = Profiled::run(&[], &["idle=1"]);
    let busy = vcpu_times(vm.running.id())[0];
    thread::sleep(Duration::from_millis(500));
    let waited = vcpu_times(vm.running.id())[0] - busy;
    assert!(waited < Duration::from_millis(100), "{waited:?}");
    vm.running.terminate();
    let total = u128::from(vm.folded().total());
    let used = busy + waited + Duration::from_millis(20);
    assert!(total <= used.as_millis(), "{total} samples in {used:?}");
}

#[test]
fn profile_ends_with_crash() {
    let mut vm = Profiled::run(&[], &["crash=1"]);
    vm.wait_time(TIME);
    vm.end_work();
    let (folded, messages) = vm.finish(121);
    folded.expect_work("guest");
    assert!(
        messages.contains("% heavy_inner") && messages.contains("#0 0x"),
        "{messages}"
    );
}

#[test]
fn all_vcpus_are_sampled() {
    let mut vm = Profiled::run(&["--cpus", "2"], &["others=1"]);
    vm.running.expect("cpu 1 up\n");
    vm.wait_time(TIME);
    vm.end_work();
    let (folded, _) = vm.finish(0);
    for caller in ["guest", "other_cpu"] {
        folded.expect_work(caller);
    }
    let events = vm.trace();
    for name in ["vcpu 0 samples", "vcpu 1 samples"] {
        let lane = events.iter().find(|event| event["args"]["name"] == name);
        let lane = &lane.unwrap()["tid"];
        let on_lane = |event: &&Value| event["tid"] == *lane && event["name"] == "light_inner";
        assert!(events.iter().find(on_lane).is_some(), "{name}");
    }
}

#[test]
fn unusable_files_and_limits_are_rejected_at_start() {
    let expect = |command: &mut Command, text: &str| {
        let output = scratch::run(command.stdin(Stdio::null()));
        let messages = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{messages}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
        assert!(messages.lines().last().unwrap().starts_with(text), "{messages}");
    };
    let directory = Directory::new();
    let mayfly = |path: &str| {
        let mut command = Command::new(program());
        command.args(["run", &file("hello.elf"), "--profile", path]);
        command
    };
    let path = directory.text("missing/profile");
    let text = format!("mayfly: cannot write the profile to {path}; name a writable file: ");
    expect(&mut mayfly(&path), &text);
    let mut limited = mayfly(&directory.text("profile"));
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let limit = move || {
        // SAFETY: `none` is valid for reads.
        match unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const none) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec and makes one system call.
    unsafe { limited.pre_exec(limit) };
    expect(
        &mut limited,
        "mayfly: cannot sample vCPU 0: its thread gets no timer; raise the limit of pending signals (ulimit -i), or run without a \
         profile: ",
    );
}

/// Runs mayfly with `arguments` and `option PATH`. Checks that it is rejected because the file at `path` is `role`, and that it keeps the
/// file.
fn expect_file_kept(arguments: &[&str], path: &str, role: &str) {
    let content = fs::read(path).unwrap();
    assert!(!content.is_empty(), "{path}");
    for (option, name) in [("--trace", "trace"), ("--profile", "profile")] {
        let mut mayfly = Command::new(program());
        let output = scratch::run(mayfly.args(arguments).args([option, path]).stdin(Stdio::null()));
        let messages = String::from_utf8(output.stderr).unwrap();
        let text =
            format!("mayfly: cannot write the {name} to {path}: the file is {role}; name another file\n");
        assert_eq!((output.status.code(), messages), (Some(1), text), "{arguments:?}");
        assert!(
            fs::read(path).unwrap() == content,
            "{option} {path} has changed the file"
        );
    }
}

#[test]
fn inputs_are_kept() {
    let directory = Directory::new();
    let image = directory.text("image");
    fs::copy(file("profile.elf"), &image).unwrap();
    let (disk, initrd, log) = (
        directory.text("disk"),
        directory.text("initrd"),
        directory.text("log"),
    );
    fs::write(&disk, [7; 4096]).unwrap();
    fs::write(&initrd, "initrd").unwrap();
    fs::write(&log, "message\n").unwrap();
    let run = ["run", &image, "--memory", "16M", "--initrd", &initrd];
    expect_file_kept(&run, &image, "the image");
    expect_file_kept(&run, &initrd, "the initrd");
    expect_file_kept(&[&run[..], &["--log-file", &log]].concat(), &log, "the log");
    let with_disk = [&run[..4], &["--disk", &disk]].concat();
    expect_file_kept(&with_disk, &disk, "a drive");

    // Both measurements in one file.
    let both = directory.text("both");
    let mut mayfly = Command::new(program());
    mayfly.args(run).args(["--trace", &both, "--profile", &both]);
    let output = scratch::run(mayfly.stdin(Stdio::null()));
    let messages = String::from_utf8(output.stderr).unwrap();
    let text =
        format!("mayfly: cannot write the profile to {both}: the file is the trace; name another file\n");
    assert_eq!((output.status.code(), messages), (Some(1), text));

    // The files of a snapshot, and a disk that only the state file names.
    let socket = directory.path("api.sock");
    let mut vm = Profiled::run(&["--disk", &disk, "--api-sock", socket.to_str().unwrap()], &[]);
    let mut client = connect(&socket);
    assert_eq!(client.request("PATCH", "/vm", PAUSED).text, NO_CONTENT);
    let (state, memory) = (directory.text("state"), directory.text("memory"));
    let body = format!(r#"{{"snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
    assert_eq!(client.request("PUT", "/snapshot/create", &body).text, NO_CONTENT);
    assert_eq!(client.request("PATCH", "/vm", RESUMED).text, NO_CONTENT);
    vm.end_work();
    vm.running.expect("ok profile\n");
    vm.finish(0);
    let restore = ["restore", &directory.text("")];
    expect_file_kept(&restore, &state, "the state file that was loaded");
    expect_file_kept(&restore, &memory, "the memory file that was loaded");
    expect_file_kept(&restore, &disk, "drive \"drive0\"");
}

#[test]
fn trace_and_exit_status_outlive_failed_profile() {
    let image = file("profile.elf");
    for (argument, code) in [("crash=0", 1), ("crash=1", 121)] {
        let directory = Directory::new();
        symlink("/dev/full", directory.path("profile")).unwrap();
        let command = ["run", &image, "--memory", "16M"];
        let mut vm = Profiled::start(directory, &command, &[argument]);
        vm.running.expect("profiling\n");
        // Without samples there is nothing to write.
        vm.wait_time(TIME);
        vm.end_work();
        vm.running.expect_exit(code);
        let messages = vm.running.read_stderr();
        let path = vm.directory.text("profile");
        let text = format!("mayfly: cannot write the profile to {path}; name a writable file: ");
        assert!(messages.lines().any(|line| line.starts_with(&text)), "{messages}");
        assert!(vm.trace().iter().any(|event| event["name"] == "heavy_inner"));
    }
}

/// Pause, resume and snapshot while the guest is sampled; the snapshot has no profile.
#[test]
fn paused_and_restored_guests_are_sampled() {
    let directory = Directory::new();
    let socket = directory.path("api.sock");
    let mut vm = Profiled::run(&["--api-sock", socket.to_str().unwrap()], &[]);
    vm.wait_time(TIME);
    let mut client = connect(&socket);
    assert_eq!(client.request("PATCH", "/vm", PAUSED).text, NO_CONTENT);
    let before = vcpu_times(vm.running.id());
    let body = format!(
        r#"{{"snapshot_path":"{}","mem_file_path":"{}"}}"#,
        directory.text("state"),
        vm.directory.text("profile")
    );
    let rejected = client.request("PUT", "/snapshot/create", &body).text;
    assert!(rejected.contains("the profile"), "{rejected}");
    let body = format!(
        r#"{{"snapshot_path":"{}","mem_file_path":"{}"}}"#,
        directory.text("state"),
        directory.text("memory")
    );
    assert_eq!(client.request("PUT", "/snapshot/create", &body).text, NO_CONTENT);
    let paused = vcpu_times(vm.running.id())[0] - before[0];
    assert!(paused < Duration::from_millis(300), "{paused:?}");
    assert_eq!(client.request("PATCH", "/vm", RESUMED).text, NO_CONTENT);
    vm.wait_time(TIME);
    vm.end_work();
    vm.running.expect("ok profile\n");
    let (folded, _) = vm.finish(0);
    folded.expect_work("guest");
    assert!(folded.total() >= 800, "{} samples", folded.total());

    // The state has no profile.
    let mut plain = Command::new(program());
    let mut plain = Running::start(
        plain
            .args(["restore", directory.root().to_str().unwrap()])
            .stdin(Stdio::piped()),
    );
    plain.take_input().unwrap().write_all(b"q").unwrap();
    plain.expect("ok profile\n");
    plain.expect_exit(0);
    assert_eq!(plain.read_stderr(), "");

    // The symbols need the right to open the image.
    let image = file("profile.elf");
    let allowed = std::path::Path::new(&image).parent().unwrap().to_str().unwrap();
    let path = directory.text("");
    for (options, has_symbols) in [(&[][..], false), (&["--allow", allowed][..], true)] {
        let command = [&["restore", &path], options].concat();
        let mut vm = Profiled::start(Directory::new(), &command, &[]);
        scratch::wait_until("the vCPU thread", || !vcpu_times(vm.running.id()).is_empty());
        vm.wait_time(TIME);
        vm.end_work();
        vm.running.expect("ok profile\n");
        let (folded, messages) = vm.finish(0);
        assert_eq!(
            messages.contains("no symbols were found"),
            !has_symbols,
            "{messages}"
        );
        match has_symbols {
            true => folded.expect_work("guest"),
            false => assert!(folded.0.iter().all(|(stack, _)| stack[1].starts_with("0x"))),
        }
    }
}
