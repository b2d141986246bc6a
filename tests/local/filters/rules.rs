//! Rules of resources/seccomp, and files of `--seccomp-filter` that lack some of them.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;

use serde_json::Value;
use syscalls::Sysno;

use super::source::{ROLES, tree};

/// Number in the filters that stands for the process.
const THIS_PROCESS: u64 = 0x4d61_7966;

/// Condition for an argument.
struct Condition {
    index: usize,
    mask: u64,
    value: u64,
}

/// Rule of one role: a system call, with conditions for its arguments.
pub struct Rule {
    /// Index of the role in [`ROLES`].
    pub role: usize,
    /// Index in the filter of the role.
    index: usize,
    /// Name of the system call.
    pub call: String,
    /// Number of the system call.
    pub number: usize,
    conditions: Vec<Condition>,
    /// Name of the ioctl request, or of the value of an argument.
    detail: String,
}

impl Rule {
    fn parse(role: usize, index: usize, rule: &Value) -> Self {
        let call = rule["syscall"].as_str().unwrap();
        let arguments = rule["args"].as_array().map_or(&[][..], Vec::as_slice);
        let conditions = arguments.iter().map(|argument| Condition {
            index: usize::try_from(argument["index"].as_u64().unwrap()).unwrap(),
            mask: match &argument["op"] {
                Value::String(op) if op == "eq" => u32::MAX.into(),
                op => op["masked_eq"].as_u64().unwrap(),
            },
            value: argument["val"].as_u64().unwrap(),
        });
        let detail = match call {
            "ioctl" => rule["comment"].as_str().and_then(|text| text.split(':').next()),
            _ => arguments
                .first()
                .and_then(|argument| argument["comment"].as_str()),
        };
        Self {
            role,
            index,
            number: call.parse::<Sysno>().unwrap().id().try_into().unwrap(),
            call: call.to_owned(),
            conditions: conditions.collect(),
            detail: detail.unwrap_or_default().to_owned(),
        }
    }

    /// Returns true if the rule allows a call of `process`.
    pub fn allows(&self, number: usize, arguments: &[u64; 6], process: u64) -> bool {
        let is_met = |condition: &Condition| {
            let value = match condition.value {
                THIS_PROCESS => process,
                value => value,
            };
            arguments[condition.index] & condition.mask == value
        };
        self.number == number && self.conditions.iter().all(is_met)
    }
}

/// `ROLE CALL`, or `ROLE CALL DETAIL` for a rule with conditions.
impl Display for Rule {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{} {}", ROLES[self.role], self.call)?;
        match self.detail.as_str() {
            "" => Ok(()),
            detail => write!(f, " {detail}"),
        }
    }
}

fn text() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/resources/seccomp/x86_64.json");
    fs::read_to_string(path).unwrap()
}

/// Returns all rules.
pub fn all() -> Vec<Rule> {
    let filters: Value = serde_json::from_str(&text()).unwrap();
    let of_role = |(role, name): (usize, &&str)| {
        let rules = filters[name]["filter"].as_array().unwrap().clone();
        let rules = rules.into_iter().enumerate();
        rules.map(move |(index, rule)| Rule::parse(role, index, &rule))
    };
    ROLES.iter().enumerate().flat_map(of_role).collect()
}

/// Compiled programs of all roles.
pub struct Programs {
    filters: Value,
    encoded: Vec<Vec<u8>>,
}

impl Programs {
    pub fn compile() -> Self {
        let text = text();
        Self {
            filters: serde_json::from_str(&text).unwrap(),
            encoded: ROLES.iter().map(|role| encode(&text, role)).collect(),
        }
    }

    /// Returns the number of instructions of the program of `role`.
    pub fn length(&self, role: usize) -> usize {
        self.encoded[role].len() / 8 - 1
    }

    /// Writes a file of filters to `path`, without the rule `removed` if given.
    pub fn write(&self, path: &Path, removed: Option<&Rule>) {
        let mut file = ROLES.len().to_le_bytes().to_vec();
        for (role, name) in ROLES.iter().enumerate() {
            file.extend(name.len().to_le_bytes());
            file.extend(name.as_bytes());
            match removed {
                Some(rule) if rule.role == role => {
                    let mut filters = self.filters.clone();
                    filters[name]["filter"].as_array_mut().unwrap().remove(rule.index);
                    file.extend(encode(&filters.to_string(), name));
                }
                _ => file.extend(&self.encoded[role]),
            }
        }
        fs::write(path, file).unwrap();
    }
}

/// Returns the program of `role` with its length, in the format of `--seccomp-filter`.
fn encode(text: &str, role: &str) -> Vec<u8> {
    let program = tree(text, role, "x86_64");
    let mut bytes = program.len().to_le_bytes().to_vec();
    for instruction in program {
        bytes.extend(instruction.code.to_le_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_le_bytes());
    }
    bytes
}
