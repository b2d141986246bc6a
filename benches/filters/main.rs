//! Cost of the seccomp filters: of the program of each role, beside the linear program with the same meaning, and of a start.
//!
//! Each program is installed on a thread of its own, which ends then. The two forms alternate, and so do starts with and without filters.
//! The floor of a start is the installation of its programs by bare calls: that of the event loop, and of one vCPU thread meanwhile.

#![allow(clippy::unwrap_used, reason = "a benchmark reports failure by panicking")]

use std::env;
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libc::{sock_filter, sock_fprog};

#[allow(dead_code, reason = "the tests of the filters use the rest")]
#[path = "../../src/filters/source.rs"]
mod source;
#[path = "../../src/filters/tree.rs"]
mod tree;

use tree::Instruction;

const INSTALLATIONS: usize = 200;
const STARTS: usize = 200;

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// Installs `program` on a new thread. Returns the time of the call.
#[allow(clippy::disallowed_methods, reason = "the thread makes one call")]
fn install(program: &[Instruction]) -> Duration {
    let mut instructions: Vec<sock_filter> = program
        .iter()
        .map(|instruction| sock_filter {
            code: instruction.code,
            jt: instruction.jt,
            jf: instruction.jf,
            // The benchmark needs all calls.
            k: match instruction {
                Instruction {
                    code: tree::RETURN, ..
                } => libc::SECCOMP_RET_ALLOW,
                other => other.k,
            },
        })
        .collect();
    let install = move || {
        let program = sock_fprog {
            len: u16::try_from(instructions.len()).unwrap(),
            filter: instructions.as_mut_ptr(),
        };
        let start = Instant::now();
        // SAFETY: the kernel copies the instructions, which outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        start.elapsed()
    };
    thread::spawn(install).join().unwrap()
}

/// Starts mayfly with `options`. Returns the time up to the first output of the guest.
fn start(options: &[&str]) -> Duration {
    let program = env::var_os("MAYFLY").unwrap_or_else(|| "dist/mayfly".into());
    let guest = format!("dist/guests/{}/hello.elf", env::consts::ARCH);
    let begin = Instant::now();
    let mut child = Command::new(program)
        .args(["run", &guest])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    let elapsed = begin.elapsed();
    assert!(scratch::wait_exit(&mut child).success());
    elapsed
}

fn main() {
    // SAFETY: the call takes numbers alone.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let architecture = env::consts::ARCH;
    let text = std::fs::read_to_string(format!("resources/seccomp/{architecture}.json")).unwrap();
    println!(
        "{:8} {:>12} {:>9} {:>14} {:>9}",
        "role", "tree", "us", "linear", "us"
    );
    for role in source::ROLES {
        let tree = source::tree(&text, role, architecture);
        let linear = source::linear(&text, role, architecture);
        let times: (Vec<_>, Vec<_>) = (0..INSTALLATIONS)
            .map(|_| (install(&tree), install(&linear)))
            .unzip();
        println!(
            "{role:8} {:>12} {:>9.1} {:>14} {:>9.1}",
            tree.len(),
            median(times.0),
            linear.len(),
            median(times.1)
        );
    }
    let programs = ["vmm", "vcpu"].map(|role| source::tree(&text, role, architecture));
    let (mut with, mut without, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        with.push(start(&[]));
        without.push(start(&["--no-seccomp"]));
        floor.push(programs.iter().map(|program| install(program)).sum());
    }
    let (with, without, floor) = (median(with), median(without), median(floor));
    println!(
        "start    {with:.0} us, without filters {without:.0} us, ratio {:.3}; difference {:.0} us, floor {floor:.0} us",
        with / without,
        with - without
    );
}
