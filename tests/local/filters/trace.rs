//! System calls of mayfly in files of strace, a file for each thread.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use syscalls::Sysno;

use super::rules::{Programs, Rule};
use super::source::ROLES;

/// `clone3` fails, and the C library then calls `clone`.
const CLONE3: usize = 435;
const CLONE: usize = 56;
const SECCOMP: usize = 317;

/// A system call of a thread.
struct Call {
    number: usize,
    arguments: [u64; 6],
    result: Option<u64>,
    /// Number of instructions of a filter that the call has installed.
    filter_length: Option<usize>,
}

/// What a set of traces shows about the rules.
#[derive(Default)]
pub struct Usage {
    /// Indices of the rules that have allowed a call.
    pub rules: BTreeSet<usize>,
    /// Calls that no rule of a filter allows, with its role.
    pub violations: BTreeSet<String>,
    /// Number of calls of threads with a filter.
    pub calls: usize,
}

/// Parses `ioctl(0x5, 0xae80, 0) = 0`. The name is `syscall_0x1c9` if strace does not know the call.
fn parse(line: &str) -> Option<Call> {
    let (name, rest) = line.split_once('(')?;
    let number = match name.strip_prefix("syscall_0x") {
        Some(digits) => usize::from_str_radix(digits, 16).ok()?,
        None => name.parse::<Sysno>().ok()?.id().try_into().ok()?,
    };
    let end = rest.rfind(") ").or_else(|| rest.find(" <unfinished"));
    let text = &rest[..end.unwrap_or(rest.len())];
    let value = |text: &str| {
        let digits = text.trim().trim_start_matches("0x");
        u64::from_str_radix(digits, 16).unwrap_or(0)
    };
    let mut arguments = [0; 6];
    for (argument, text) in arguments.iter_mut().zip(text.split(", ")) {
        *argument = value(text);
    }
    let result = line.rsplit_once(" = 0x");
    let length = text
        .split_once("len=")
        .and_then(|(_, rest)| rest.split(',').next());
    Some(Call {
        number,
        arguments,
        result: result.and_then(|(_, text)| u64::from_str_radix(text, 16).ok()),
        filter_length: length.and_then(|length| length.parse().ok()),
    })
}

/// Threads of a process by ID, with their calls.
type Threads = BTreeMap<u64, Vec<Call>>;

/// Limit of the wait for strace after the end of its processes.
const LIMIT: Duration = Duration::from_secs(20);

/// Waits until strace has written all files of `directory`.
///
/// # Errors
/// The path and the last line of a file without the end of its thread.
pub fn await_end(directory: &Path) -> Result<(), String> {
    let start = Instant::now();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        loop {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            let last = text.lines().last().unwrap_or_default();
            if last.ends_with(" +++") {
                break;
            }
            if start.elapsed() > LIMIT {
                return Err(format!("{} ends in {last:?}", path.display()));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// Reads the files of `directory`. Returns the threads of each process.
fn read(directory: &Path) -> BTreeMap<u64, Threads> {
    let mut processes: BTreeMap<u64, Threads> = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let (process, thread) = name.split_once('.').unwrap();
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        let threads = processes.entry(process.parse().unwrap()).or_default();
        threads.insert(thread.parse().unwrap(), text.lines().filter_map(parse).collect());
    }
    processes
}

impl Usage {
    /// Adds the traces in `directory`.
    pub fn read(directory: &Path, rules: &[Rule], programs: &Programs) -> Self {
        let lengths: HashMap<usize, usize> = (0..ROLES.len())
            .map(|role| (programs.length(role), role))
            .collect();
        assert_eq!(
            lengths.len(),
            ROLES.len(),
            "filters are told apart by their lengths"
        );
        let mut usage = Self::default();
        for (process, threads) in read(directory) {
            // Threads with the roles that they begin with: the first thread, then those that others create.
            let mut begun = vec![(process, Vec::new())];
            while let Some((thread, mut roles)) = begun.pop() {
                for call in threads.get(&thread).into_iter().flatten() {
                    usage.add(call, &roles, process, rules);
                    if call.number == SECCOMP
                        && let Some(length) = call.filter_length
                    {
                        roles.push(lengths[&length]);
                    }
                    if (call.number == CLONE || call.number == CLONE3)
                        && let Some(thread) = call.result
                    {
                        begun.push((thread, roles.clone()));
                    }
                }
            }
        }
        usage
    }

    /// Adds a call of a thread with the filters of `roles`.
    fn add(&mut self, call: &Call, roles: &[usize], process: u64, rules: &[Rule]) {
        self.calls += usize::from(!roles.is_empty());
        for &role in roles {
            let mut of_role = rules.iter().enumerate().filter(|(_, rule)| rule.role == role);
            match of_role.find(|(_, rule)| rule.allows(call.number, &call.arguments, process)) {
                Some((index, _)) => {
                    self.rules.insert(index);
                }
                None if call.number == CLONE3 => {}
                None => {
                    let violation = format!("{} {} {:x?}", ROLES[role], call.number, call.arguments);
                    self.violations.insert(violation);
                }
            }
        }
    }
}
