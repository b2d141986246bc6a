//! The filters of all architectures, executed by an interpreter of their instructions.

use std::collections::BTreeSet;
use std::fs;

use super::source::{ROLES, linear, tree, unsupported};
use super::tree::{AND, EQUAL, GREATER, Instruction, JUMP, LOAD, NOT_LESS, RETURN};

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64` of linux/audit.h.
const ARCHITECTURES: [(&str, u32); 2] = [("x86_64", 0xc000_003e), ("aarch64", 0xc000_00b7)];
/// Flag of the system calls of x32, which have other arguments.
const X32: u32 = 1 << 30;
/// `SECCOMP_RET_ALLOW`, `SECCOMP_RET_TRAP` and `SECCOMP_RET_KILL_PROCESS` of linux/seccomp.h.
const ALLOW: u32 = 0x7fff_0000;
const TRAP: u32 = 0x3_0000;
const KILL: u32 = 0x8000_0000;

/// System call, in the words of `struct seccomp_data`.
type Call = [u32; 16];

fn call(number: u32, architecture: u32) -> Call {
    let mut call = [0; 16];
    (call[0], call[1]) = (number, architecture);
    call
}

/// Executes `program` for `call`. Returns the result.
fn execute(program: &[Instruction], call: &Call) -> u32 {
    let (mut position, mut word) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[position];
        let skip = |is_true| usize::from(if is_true { jt } else { jf });
        position += 1;
        match code {
            LOAD => word = call[k as usize / 4],
            AND => word &= k,
            JUMP => position += k as usize,
            EQUAL => position += skip(word == k),
            GREATER => position += skip(word > k),
            NOT_LESS => position += skip(word >= k),
            RETURN => return k,
            other => panic!("unknown operation {other:#x}"),
        }
    }
}

fn file(architecture: &str) -> String {
    fs::read_to_string(format!("resources/seccomp/{architecture}.json")).unwrap()
}

/// Returns all numbers that Linux may have, and others.
fn numbers() -> impl Iterator<Item = u32> {
    (0..1024).chain(X32..X32 + 1024).chain([u32::MAX - 1, u32::MAX])
}

/// Calls `check` with `number`, and with each argument that a linear program of `programs` may distinguish for it.
fn for_each_call(programs: &[&[Instruction]], number: u32, architecture: u32, mut check: impl FnMut(&Call)) {
    check(&call(number, architecture));
    let mut other = [u32::MAX; 16];
    (other[0], other[1]) = (number, architecture);
    check(&other);
    let conditions = programs.iter().map(|program| conditions(program, number));
    for (word, values) in conditions.flatten() {
        for value in values {
            let mut call = call(number, architecture);
            call[word] = value;
            check(&call);
            // The kernel ignores the upper half of these arguments.
            call[word + 1] = 1;
            check(&call);
        }
    }
}

/// Returns the words that a linear program of seccompiler loads for `number`, each with its constants and their neighbours.
fn conditions(program: &[Instruction], number: u32) -> Vec<(usize, BTreeSet<u32>)> {
    let is_call = |instruction: &Instruction| instruction.code == EQUAL && instruction.k == number;
    let Some(first) = program.iter().skip(4).position(is_call) else {
        return Vec::new();
    };
    let mut found: Vec<(usize, BTreeSet<u32>)> = Vec::new();
    // Up to the result of a mismatch, which ends the block.
    for Instruction { code, k, .. } in program[first + 5..].iter().take_while(|other| other.k != TRAP) {
        match (*code, found.last_mut()) {
            (LOAD, _) => found.push((*k as usize / 4, BTreeSet::from([0, u32::MAX]))),
            (EQUAL | AND, Some((_, values))) => values.extend([*k, k.wrapping_add(1), k.wrapping_sub(1), !k]),
            _ => {}
        }
    }
    found
}

#[test]
fn tree_has_meaning_of_linear_filter() {
    for (name, architecture) in ARCHITECTURES {
        let (text, unsupported) = (file(name), unsupported(name));
        for role in ROLES {
            let (linear, tree) = (linear(&text, role, name), tree(&text, role, name));
            assert!(tree.len() < linear.len() / 2, "{name} {role}: {}", tree.len());
            for number in numbers() {
                let check = |call: &Call| {
                    let expected = unsupported.get(&number).copied();
                    let expected = expected.unwrap_or_else(|| execute(&linear, call));
                    assert_eq!(execute(&tree, call), expected, "{name} {role} {call:x?}");
                };
                for_each_call(&[&linear], number, architecture, check);
            }
            // Of another architecture, such as 32-bit calls.
            assert_eq!(execute(&tree, &call(0, 0x4000_0003)), KILL);
        }
    }
}

/// Calls of the role vmm that concern passt. A process that waits in the role start has none.
const PASST: [libc::c_long; 2] = [libc::SYS_wait4, libc::SYS_pidfd_send_signal];

#[test]
fn role_allows_calls_of_roles_that_it_starts() {
    for (name, architecture) in ARCHITECTURES {
        let text = file(name);
        let filter = |role| tree(&text, role, name);
        for (outer, inner) in [
            ("start", "vmm"),
            ("start", "vcpu"),
            ("vmm", "worker"),
            ("vcpu", "worker"),
            ("start", "console"),
            ("vmm", "console"),
        ] {
            let (outer_filter, inner_filter) = (filter(outer), filter(inner));
            let linear = [linear(&text, outer, name), linear(&text, inner, name)];
            let is_of_passt = |number: &u32| PASST.contains(&libc::c_long::from(*number)) && outer == "start";
            for number in numbers().filter(|number| name != "x86_64" || !is_of_passt(number)) {
                for_each_call(&[&linear[0], &linear[1]], number, architecture, |call| {
                    if execute(&inner_filter, call) == ALLOW {
                        assert_eq!(
                            execute(&outer_filter, call),
                            ALLOW,
                            "{name} {outer} {inner} {call:x?}"
                        );
                    }
                });
            }
        }
    }
}

#[test]
fn dangerous_calls_are_refused() {
    let text = file("x86_64");
    let refused = [
        ("execve", libc::SYS_execve),
        ("fork", libc::SYS_fork),
        ("ptrace", libc::SYS_ptrace),
        ("bpf", libc::SYS_bpf),
        ("mount", libc::SYS_mount),
        ("unshare", libc::SYS_unshare),
        ("setns", libc::SYS_setns),
        ("kill", libc::SYS_kill),
        ("pidfd_open", libc::SYS_pidfd_open),
        ("setuid", libc::SYS_setuid),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("chmod", libc::SYS_chmod),
    ];
    for role in ["vmm", "vcpu", "worker", "console"] {
        let filter = tree(&text, role, "x86_64");
        for (name, number) in refused {
            let call = call(u32::try_from(number).unwrap(), ARCHITECTURES[0].1);
            assert_eq!(execute(&filter, &call), TRAP, "{role} {name}");
        }
    }
}

#[test]
fn each_rule_has_a_reason_and_exists_once() {
    for (name, _) in ARCHITECTURES {
        let filters: serde_json::Value = serde_json::from_str(&file(name)).unwrap();
        for role in ROLES {
            let mut seen = BTreeSet::new();
            for rule in filters[role]["filter"].as_array().unwrap() {
                let reason = rule["comment"].as_str().unwrap();
                assert!(!reason.is_empty(), "{name} {role} {rule}");
                let key = format!("{} {}", rule["syscall"], rule["args"]);
                assert!(seen.insert(key), "{name} {role} {rule}");
            }
        }
    }
}
