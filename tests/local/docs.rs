//! The commands in the documentation that need only the test guests.

use std::os::unix::fs::symlink;
use std::process::{Command, ExitStatus, Stdio};
use std::{env, fs};

use scratch::{Directory, Requirement};

use crate::guests::{file, jailer, program};
use crate::network::in_own_network;
use crate::pages::{Block, PAGES, Treatment, blocks};

/// Seconds for one block.
const TIMEOUT: &str = "300";

scenarios! {
    readme => run("README.md");
    console => run("docs/console.md");
    crashes => run("docs/crashes.md");
    debugging => run("docs/debugging.md");
    firecracker_compatibility => run("docs/firecracker-compatibility.md");
    guests => run("docs/guests.md");
    // The page makes its images by umoci and skopeo.
    images => if scratch::require(Requirement::OciTools) { run("docs/images.md") };
    install => run("docs/install.md");
    networking => run("docs/networking.md");
    performance => run("docs/performance.md");
    scale_to_zero => run("docs/scale-to-zero.md");
    security => run("docs/security.md");
    snapshots => run("docs/snapshots.md");
}

/// Runs the blocks of a page in their order, all in one directory that holds the test guests.
fn run(name: &str) {
    let (_, page) = PAGES.iter().find(|(page, _)| *page == name).unwrap();
    let directory = Directory::new();
    for guest in fs::read_dir(file("")).unwrap() {
        let guest = guest.unwrap();
        let link = directory.path(guest.file_name().to_str().unwrap());
        symlink(guest.path(), link).unwrap();
    }
    let bin = Directory::new();
    symlink(program(), bin.path("mayfly")).unwrap();
    if page.contains("\nmayfly-jailer ") {
        symlink(jailer(), bin.path("mayfly-jailer")).unwrap();
    }
    let mut count = 0;
    for block in blocks(name, page) {
        match block.treatment {
            Treatment::Run { own_network: false } => check(name, &block, &directory, &bin),
            Treatment::Run { own_network: true } => in_own_network(|| check(name, &block, &directory, &bin)),
            _ => continue,
        }
        count += 1;
    }
    assert!(count > 0, "{name} has no block to run");
}

fn check(name: &str, block: &Block, directory: &Directory, bin: &Directory) {
    let status = execute(&block.code, directory, bin);
    let printed = fs::read_to_string(directory.path("printed")).unwrap();
    let line = block.line;
    assert!(status.success(), "{name}:{line}: {status}\n{printed}");
    let mut rest = printed.lines();
    for expected in &block.output {
        assert!(
            rest.any(|line| line.trim_end().ends_with(expected.as_str())),
            "{name}:{line}: {expected:?} is missing in\n{printed}"
        );
    }
}

/// Runs `code` in bash, which kills the processes that `code` leaves in the background.
fn execute(code: &str, directory: &Directory, bin: &Directory) -> ExitStatus {
    let path = format!("{}:{}", bin.root().display(), env::var("PATH").unwrap());
    let printed = fs::File::create(directory.path("printed")).unwrap();
    let mut shell = Command::new("timeout")
        .args(["--kill-after=1", TIMEOUT, "bash", "-euo", "pipefail", "-c"])
        .arg(format!(
            "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{code}"
        ))
        .current_dir(directory.root())
        .env("PATH", path)
        .stdin(Stdio::null())
        .stderr(printed.try_clone().unwrap())
        .stdout(printed)
        .spawn()
        .unwrap();
    scratch::wait_exit(&mut shell)
}
