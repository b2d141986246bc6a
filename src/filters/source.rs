//! Filters of resources/seccomp, compiled by seccompiler. The build script compiles them for the program.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, TargetArch};
use serde_json::{Value, json};

use super::tree::{self, Instruction};

/// Roles, in the order of `ThreadRole`.
pub const ROLES: [&str; 5] = ["start", "vmm", "vcpu", "worker", "console"];

/// `SECCOMP_RET_ERRNO | ENOSYS`: the C library then calls `clone`, whose flags a filter can check.
const UNSUPPORTED: u32 = 0x5_0000 | 38;
/// Calls with the result [`UNSUPPORTED`].
const UNSUPPORTED_CALLS: [&str; 1] = ["clone3"];

/// Compiles the filter of one role. Returns its linear program.
fn compile_linear(filter: &Value, architecture: &str) -> Vec<Instruction> {
    let text = json!({ "role": filter }).to_string();
    let target: TargetArch = architecture
        .try_into()
        .expect("seccompiler knows the architecture");
    let programs = seccompiler::compile_from_json(text.as_bytes(), target);
    let mut programs = programs.unwrap_or_else(|error| panic!("cannot compile {text}: {error}"));
    let program: BpfProgram = programs.remove("role").expect("the map has one filter");
    let instructions = program.iter().map(|instruction| Instruction {
        code: instruction.code,
        jt: instruction.jt,
        jf: instruction.jf,
        k: instruction.k,
    });
    instructions.collect()
}

/// Returns the filter `role` of the file `text`.
///
/// # Panics
/// Panics if the file is invalid.
fn filter(text: &str, role: &str) -> Value {
    let filters: Value = serde_json::from_str(text).expect("the file is JSON");
    filters
        .get(role)
        .cloned()
        .unwrap_or_else(|| panic!("the file has no filter {role}"))
}

/// Compiles the filter `role` of the file `text` to a linear program.
///
/// # Panics
/// Panics if the file is invalid.
#[allow(dead_code, reason = "the build script compiles trees only")]
pub fn linear(text: &str, role: &str, architecture: &str) -> Vec<Instruction> {
    compile_linear(&filter(text, role), architecture)
}

/// Compiles the filter `role` of the file `text` to a tree.
///
/// # Panics
/// Panics if the file is invalid.
pub fn tree(text: &str, role: &str, architecture: &str) -> Vec<Instruction> {
    let filter = filter(text, role);
    let mut rules: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for rule in filter["filter"].as_array().expect("a filter has rules") {
        let call = rule["syscall"].as_str().expect("a rule names its system call");
        rules.entry(call.to_owned()).or_default().push(rule.clone());
    }
    let mut filters = BTreeMap::new();
    for rules in rules.into_values() {
        let mut single = filter.clone();
        single["filter"] = Value::Array(rules);
        let program = compile_linear(&single, architecture);
        filters.insert(tree::first_number(&program), program);
    }
    let other = filters.values().next().and_then(|program| program.last());
    let other = other.expect("a filter has a rule").k;
    tree::compile(&filters, &unsupported(architecture), other)
}

/// Returns number and result of each unsupported call.
pub fn unsupported(architecture: &str) -> BTreeMap<u32, u32> {
    let number = |call| {
        let filter =
            json!({ "mismatch_action": "trap", "match_action": "allow", "filter": [{ "syscall": call }] });
        tree::first_number(&compile_linear(&filter, architecture))
    };
    UNSUPPORTED_CALLS
        .iter()
        .map(|call| (number(call), UNSUPPORTED))
        .collect()
}
