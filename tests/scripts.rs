//! The goals of make and the scripts on a simulated machine: `uname -m` answers with an architecture, and recording programs stand for
//! compilers, package managers and everything else beside the base tools. They run in a copy of the files, without a network.

#![allow(clippy::unwrap_used, reason = "a test reports failure by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Files and directories that the goals and scripts need.
const COPIED: [&str; 15] = [
    "CHANGELOG.md",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "benches",
    "docs",
    "resources",
    "tests/clients",
    "tests/fuzz/corpus",
    "tests/fuzz/run.sh",
    "tests/hosts",
    "tests/interleavings",
    "tests/unit.sh",
    ".cargo",
];

/// Tools of the machine that run as they are.
const BASE_TOOLS: [&str; 47] = [
    "bash",
    "basename",
    "cat",
    "chmod",
    "cmp",
    "cp",
    "cut",
    "date",
    "dirname",
    "du",
    "echo",
    "env",
    "expand",
    "find",
    "flock",
    "grep",
    "head",
    "install",
    "ln",
    "ls",
    "make",
    "mkdir",
    "mkfifo",
    "mktemp",
    "mv",
    "nproc",
    "od",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "truncate",
    "wc",
    "xargs",
];

/// Programs that record their arguments.
const RECORDED: [&str; 20] = [
    "apt-cache",
    "apt-get",
    "ar",
    "c++",
    "cargo",
    "cargo-clippy",
    "cargo-fmt",
    "cc",
    "curl",
    "debootstrap",
    "dpkg",
    "dpkg-deb",
    "git",
    "gzip",
    "id",
    "md5sum",
    "objcopy",
    "python3",
    "rustc",
    "uname",
];

/// Tools that setup.sh requires, beside [`RECORDED`].
const REQUIRED: [&str; 17] = [
    "fish",
    "ip",
    "ld",
    "lintian",
    "lz4",
    "man",
    "mandoc",
    "xz",
    "nft",
    "passt",
    "ping",
    "qemu-system-aarch64",
    "qemu-system-x86_64",
    "systemd-analyze",
    "zsh",
    "aarch64-linux-gnu-gcc",
    "aarch64-linux-gnu-objcopy",
];

/// Scripts that depend on the architecture, with arguments.
const SCRIPTS: [(&str, &[&str]); 7] = [
    ("benches/clones.sh", &[]),
    ("benches/floor/run.sh", &[]),
    ("tests/clients/setup.sh", &[]),
    ("tests/fuzz/run.sh", &["1", "http"]),
    ("tests/hosts/fetch.sh", &[]),
    ("tests/hosts/setup.sh", &["build"]),
    ("tests/hosts/setup.sh", &[]),
];

/// Words that belong to x86_64 alone.
const X86_WORDS: [&str; 9] = [
    "x86", "amd64", "i386", "i686", "kvm-amd", "kvm_amd", "-m64", "memtest", "xen",
];

/// A machine of an architecture, with a copy of the files.
struct Machine {
    directory: scratch::Directory,
    architecture: &'static str,
}

impl Machine {
    fn new(architecture: &'static str) -> Self {
        let directory = scratch::Directory::new();
        fs::create_dir(directory.path("tree")).unwrap();
        copy_files(&directory.path("tree"));
        let machine = Self {
            directory,
            architecture,
        };
        fs::create_dir(machine.tools()).unwrap();
        for tool in BASE_TOOLS {
            symlink(find_tool(tool), machine.tools().join(tool)).unwrap();
        }
        machine.record(&RECORDED);
        machine
    }

    fn tree(&self) -> PathBuf {
        self.directory.path("tree")
    }

    fn tools(&self) -> PathBuf {
        self.directory.path("tools")
    }

    /// Adds recording programs to PATH.
    fn record(&self, tools: &[&str]) {
        for tool in tools {
            let path = self.tools().join(tool);
            let _ = fs::remove_file(&path);
            symlink(root().join("tests/scripts/fake.sh"), path).unwrap();
        }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.tree())
            .env_clear()
            .env("PATH", self.tools())
            // Files of `make install`.
            .env("DESTDIR", self.directory.path("installed"))
            .env("FAKE_LOG", self.directory.path("log"))
            .env("FAKE_MACHINE", self.architecture)
            .env("FAKE_PROGRAM", root().join("tests/scripts/fake.sh"));
        scratch::run(&mut command)
    }

    /// Runs a goal of make, or a script, which must succeed. Returns the calls of recording programs.
    fn expect_success(&self, program: &str, arguments: &[&str]) -> Vec<String> {
        let log = self.directory.path("log");
        fs::write(&log, "").unwrap();
        let output = self.run(program, arguments);
        let calls = fs::read_to_string(log).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {text}");
        calls.lines().map(str::to_owned).collect()
    }

    fn expect_make(&self, arguments: &[&str]) -> Vec<String> {
        self.expect_success("make", &[&["--silent"], arguments].concat())
    }

    fn has(&self, path: &str) -> bool {
        self.tree().join(path).exists()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn find_tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|directory| directory.join(name));
    found
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is missing"))
}

/// Copies [`COPIED`] to the directory `to`. Another process does: the kernel executes no script that is open for writing (ETXTBSY), and a
/// child that another test starts has the descriptors of this process until its `execve`.
fn copy_files(to: &Path) {
    let mut command = Command::new("cp");
    command.args(["-r", "--parents"]).args(COPIED).arg(to);
    let output = scratch::run(command.current_dir(root()));
    assert!(output.status.success(), "{output:?}");
}

/// Returns the goals that `make` lists.
fn goals(machine: &Machine) -> Vec<String> {
    let output = machine.run("make", &["--silent", "help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let goals = text.lines().filter_map(|line| line.split_whitespace().nth(1));
    goals.map(str::to_owned).collect()
}

fn check_no_x86(what: &str, calls: &[String]) {
    for call in calls {
        let found = X86_WORDS.iter().find(|word| call.contains(**word));
        assert_eq!(found, None, "{what}: {call}");
    }
}

#[test]
fn goals_on_aarch64_request_nothing_of_x86() {
    let machine = Machine::new("aarch64");
    machine.record(&REQUIRED);
    // Its download is tested alone.
    scratch::write_program(machine.tree().join("tests/hosts/fetch.sh"), "#!/bin/bash\n");
    let goals = goals(&machine);
    assert!(goals.len() > 15, "{goals:?}");
    let internal = [
        "guests",
        "tools",
        "format",
        "lint",
        "docs",
        "aarch64",
        "scenarios",
        "unit",
        "control",
    ];
    for goal in goals.iter().map(String::as_str).chain(internal) {
        let calls = machine.expect_make(&[goal]);
        check_no_x86(goal, &calls);
        if goal == "install" {
            let installed = machine.directory.path("installed/usr/local");
            for file in [
                "bin/mayfly-tools",
                "share/man/man1/mayfly.1",
                "share/zsh/site-functions/_mayfly",
                "lib/systemd/system/mayfly@.service",
            ] {
                assert!(installed.join(file).exists(), "{file}");
            }
        }
        if goal == "deb" {
            let package = calls.iter().find(|call| call.starts_with("dpkg-deb "));
            assert!(
                package.is_some_and(|call| call.contains("_arm64.deb")),
                "{calls:?}"
            );
        }
        if goal == "build" {
            for file in [
                "mayfly",
                "mayfly-jailer",
                "mayfly-standby",
                "mayfly-tools",
                "aarch64/mayfly",
                "aarch64/mayfly-jailer",
            ] {
                assert!(machine.has(&format!("dist/{file}")), "{file}");
            }
            assert!(machine.has("dist/guests/aarch64/fc/hello.elf"));
            assert!(machine.has("dist/guests/aarch64/virt/image.bin"));
            let is_cross = |call: &&String| call.contains("--target ") || call.contains("aarch64-linux-gnu");
            assert_eq!(calls.iter().find(is_cross), None, "a native build");
        }
    }
}

#[test]
fn scripts_on_aarch64_request_nothing_of_x86() {
    let machine = Machine::new("aarch64");
    machine.record(&REQUIRED);
    machine.expect_make(&["build"]);
    // Their files come from packages that are not downloaded.
    machine.record(&["cp", "dd", "gzip", "mv", "od", "readelf"]);
    for (script, arguments) in SCRIPTS {
        let calls = machine.expect_success(&format!("./{script}"), arguments);
        check_no_x86(script, &calls);
        if script == "tests/hosts/fetch.sh" {
            let kernel = |call: &String| call.contains("download linux-image-0-cloud:arm64");
            assert!(calls.iter().any(kernel), "{calls:?}");
        }
    }
}

#[test]
fn setup_on_aarch64_installs_no_package_of_x86() {
    let machine = Machine::new("aarch64");
    let calls = machine.run("tests/hosts/setup.sh", &[]);
    drop(calls);
    let log = fs::read_to_string(machine.directory.path("log")).unwrap();
    let calls: Vec<String> = log.lines().map(str::to_owned).collect();
    let installs = calls.iter().find(|call| call.contains(" install ")).unwrap();
    for package in ["binutils", "qemu-system-arm", "iproute2", "passt"] {
        assert!(installs.contains(package), "{package}: {installs}");
    }
    assert!(
        !installs.contains("cross") && !installs.contains("gcc-aarch64"),
        "{installs}"
    );
    check_no_x86("setup", &calls);
}

#[test]
fn scenarios_for_aarch64_build_in_a_fresh_tree() {
    let machine = Machine::new("x86_64");
    machine.record(&REQUIRED);
    // Its download is tested alone.
    scratch::write_program(machine.tree().join("tests/hosts/fetch.sh"), "#!/bin/bash\n");
    let calls = machine.expect_make(&["scenarios", "ARCH=aarch64"]);
    assert!(machine.has("dist/aarch64/scenarios") && !machine.has("dist/scenarios"));
    let build = calls.iter().find(|call| call.starts_with("cargo build")).unwrap();
    assert!(
        build.contains("--target aarch64-unknown-linux-gnu --target-dir target/cross"),
        "{build}"
    );
    machine.expect_make(&["build", "ARCH=aarch64"]);
    assert!(machine.has("dist/aarch64/mayfly") && !machine.has("dist/mayfly"));
}

#[test]
fn other_architecture_is_an_error() {
    let machine = Machine::new("riscv64");
    machine.record(&REQUIRED);
    let make: (&str, &[&str]) = ("make", &["build"]);
    let guests: (&str, &[&str]) = ("make", &["-C", "resources/guests"]);
    for (script, arguments) in SCRIPTS.into_iter().chain([make, guests]) {
        let program = if script == "make" {
            script.to_owned()
        } else {
            format!("./{script}")
        };
        let output = machine.run(&program, arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{script} {arguments:?}");
        assert!(
            message.contains("riscv64") && message.contains("use x86_64 or aarch64"),
            "{script} {arguments:?}: {message}"
        );
    }
}

#[test]
fn every_script_that_reads_the_architecture_is_tested() {
    let mut found = BTreeSet::new();
    for directory in ["benches", "resources", "tests"] {
        add_scripts(&root().join(directory), &mut found);
    }
    let tested: BTreeSet<String> = SCRIPTS.iter().map(|(script, _)| (*script).to_owned()).collect();
    assert_eq!(found, tested);
}

/// Output of cargo after the failure of one of two tests.
const FAILED: &str = "test a::one ... ok\ntest a::two ... FAILED\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\n\
                      error: 1 target failed:\n    `-p mayfly --test local`\n";
/// Output of cargo after one test has passed.
const PASSED: &str = "test result: ok. 1 passed; 0 failed; 0 ignored\n";

/// Runs tests/unit.sh with a cargo that prints `outputs` in turn, and fails if they contain `error:`. Returns its status, its output and
/// the arguments of each cargo.
fn run_unit(outputs: &[&str]) -> (Option<i32>, String, String) {
    let directory = scratch::Directory::new();
    for (number, output) in outputs.iter().enumerate() {
        directory.write(&format!("output{number}"), output);
    }
    directory.write("calls", "");
    let cargo = "cd \"$DIRECTORY\"\noutput=output$(wc -l <calls)\necho \"$*\" >>calls\ncat \"$output\"\n! grep -q error: \"$output\"\n";
    let tools = directory.path("tools");
    fs::create_dir(&tools).unwrap();
    let script = tools.join("cargo");
    // A shell reads it, as a program that this process writes may be busy (ETXTBSY).
    fs::write(&script, cargo).unwrap();
    let function = format!(
        "cargo() {{ bash {} \"$@\"; }}; export -f cargo; exec tests/unit.sh --all",
        script.display()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &function]).current_dir(root());
    let output = scratch::run(command.env("DIRECTORY", directory.text("")));
    let calls = fs::read_to_string(directory.path("calls")).unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        calls,
    )
}

#[test]
fn failed_test_is_repeated_once_and_counted() {
    let all = "test --no-fail-fast --all\n";
    let again = "test --workspace --test local -- --exact a::two --test-threads 1\n";
    let (status, output, calls) = run_unit(&[PASSED]);
    assert_eq!((status, calls.as_str()), (Some(0), all));
    assert!(!output.contains("repeated"), "{output}");

    let (status, output, calls) = run_unit(&[FAILED, PASSED]);
    assert_eq!((status, calls), (Some(0), format!("{all}{again}")));
    let count = "== repeated after a failure: 1 of at most 2: a::two: status 0\n";
    assert!(output.contains(count), "{output}");
    assert!(
        output.ends_with("== skipped for lack of a requirement: 0\n"),
        "{output}"
    );

    // It fails again, or does not run.
    let none = "test result: ok. 0 passed; 0 failed; 0 ignored\n";
    for second in [FAILED, none] {
        let (status, _, calls) = run_unit(&[FAILED, second]);
        assert_eq!((status, calls), (Some(1), format!("{all}{again}")));
    }
}

#[test]
fn other_failures_are_final() {
    let more = FAILED.replace("a::one ... ok", "a::one ... FAILED") + "test a::three ... FAILED\n";
    let other = "test src/lib.rs - example (line 1) ... FAILED\n".to_owned() + FAILED;
    let ended = FAILED.to_owned() + "    `-p mayfly --test cli`\n";
    for output in [&more, &other, &ended, "error: could not compile\n"] {
        let (status, _, calls) = run_unit(&[output, PASSED]);
        assert_eq!((status, calls.lines().count()), (Some(1), 1), "{output}");
    }
}

/// Adds the shell scripts below `directory` that call uname.
fn add_scripts(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            add_scripts(&path, found);
        } else if name.ends_with(".sh") && fs::read_to_string(&path).unwrap().contains("uname -m") {
            found.insert(name);
        }
    }
}

/// The benchmarks compile them only when they run. Each is of one architecture.
#[test]
fn floors_of_benchmarks_compile() {
    let mut count = 0;
    for directory in fs::read_dir(root().join("benches")).unwrap() {
        let Ok(files) = fs::read_dir(directory.unwrap().path()) else {
            continue;
        };
        for file in files.map(|file| file.unwrap().path()) {
            let is_source = file.extension().is_some_and(|extension| extension == "c");
            let is_of_aarch64 = file.file_stem().is_some_and(|stem| stem == "aarch64");
            if !is_source || is_of_aarch64 != cfg!(target_arch = "aarch64") {
                continue;
            }
            let mut compiler = Command::new("cc");
            compiler.args(["-fsyntax-only", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]);
            let output = scratch::run(compiler.arg(&file));
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            count += 1;
        }
    }
    assert!(count > 0);
}
