//! Checks of the commands in the documentation: subcommands and options of mayfly, paths of its API, goals of make, targets of cargo.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Programs and shell words before the name of a command.
const PREFIXES: [&str; 10] = [
    "sudo", "exec", "while", "until", "if", "then", "do", "!", "time", "nohup",
];
/// Paths of Firecracker's API that mayfly rejects.
const UNSUPPORTED: [&str; 6] = ["balloon", "entropy", "mmds", "pmem", "hotplug", "cpu-config"];

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads a file of the repository.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Help texts of mayfly by subcommand. An unknown subcommand has none.
#[derive(Default)]
pub struct Help(HashMap<String, Option<String>>);

impl Help {
    fn of(&mut self, command: &str) -> Option<&str> {
        let text = self.0.entry(command.to_owned()).or_insert_with(|| {
            let output = scratch::run(Command::new(env!("CARGO_BIN_EXE_mayfly")).args(["help", command]));
            let text = String::from_utf8(output.stdout).unwrap();
            output.status.success().then_some(text)
        });
        text.as_deref()
    }
}

/// Returns true if `text` contains `word`, not as part of a longer option or name.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
    text.match_indices(word).any(|(start, _)| {
        let before = text.as_bytes()[..start].last();
        let after = text.as_bytes().get(start + word.len());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// Returns true if a value follows `option` in the help: a name in capital letters.
fn takes_value(help: &str, option: &str) -> bool {
    help.match_indices(option).any(|(start, _)| {
        let mut rest = help[start + option.len()..].chars();
        rest.next() == Some(' ') && rest.next().is_some_and(char::is_uppercase)
    })
}

/// Checks the arguments of one mayfly command.
fn check_mayfly(help: &mut Help, arguments: &[String]) -> Result<(), String> {
    let first = arguments.first().ok_or("no subcommand")?.as_str();
    let (topic, rest) = match first {
        "help" => {
            let topic = arguments.get(1).map_or("", String::as_str);
            let is_placeholder = topic.bytes().all(|byte| byte.is_ascii_uppercase());
            let known = is_placeholder || help.of(topic).is_some();
            return known.then_some(()).ok_or(format!("no help on {topic}"));
        }
        option if option.starts_with("--") => ("firecracker", arguments),
        command => (command, &arguments[1..]),
    };
    let text = help.of(topic).ok_or(format!("no subcommand {topic}"))?;
    let mut positional = Vec::new();
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        if !word.starts_with('-') || word.len() == 1 {
            positional.push(word.as_str());
            continue;
        }
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let option = &word[..end.unwrap_or(word.len())];
        if !has_word(text, option) {
            return Err(format!("mayfly help {topic} has no option {option}"));
        }
        if takes_value(text, option)
            && let Some(value) = words.next()
        {
            check_value(text, option, value)?;
        }
    }
    match positional.first() {
        Some(command) if topic == "ctl" && !has_word(text, command) => {
            Err(format!("mayfly ctl has no command {command}"))
        }
        Some(_) if topic == "ctl" && positional[0] == "request" => {
            check_path(positional.get(2).copied().unwrap_or_default())
        }
        _ => Ok(()),
    }
}

/// Checks the keys of a value such as `data.img,cache=writeback`.
fn check_value(help: &str, option: &str, value: &str) -> Result<(), String> {
    if !["--disk", "--net"].contains(&option) {
        return Ok(());
    }
    for part in value.split(',').skip(1) {
        let key = part.split('=').next().unwrap_or_default();
        let key = key.trim_end_matches(['[', ']']);
        if !has_word(help, key) {
            return Err(format!("{option} has no key {key}"));
        }
    }
    Ok(())
}

/// Checks that a specification has the path of a request.
fn check_path(path: &str) -> Result<(), String> {
    let specification = read("resources/openapi.yaml") + &read("resources/standby.yaml");
    let mut known = specification
        .lines()
        .filter_map(|line| line.strip_prefix("  /")?.strip_suffix(':'));
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let is_known = known.any(|known| {
        let known: Vec<&str> = known.split('/').collect();
        known.len() == segments.len()
            && known
                .iter()
                .zip(&segments)
                .all(|(known, segment)| known == segment || known.starts_with('{'))
    });
    (is_known || UNSUPPORTED.contains(&segments[0]))
        .then_some(())
        .ok_or(format!("the API has no path {path}"))
}

fn check_make(arguments: &[String]) -> Result<(), String> {
    if arguments.iter().any(|word| word == "-C") {
        return Ok(());
    }
    let makefile = read("Makefile");
    let goals: Vec<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '#', '.']))
        .filter_map(|line| line.split_once(':'))
        .map(|(goal, _)| goal)
        .collect();
    for word in arguments {
        let is_goal = word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if is_goal && !goals.contains(&word.as_str()) {
            return Err(format!("the Makefile has no goal {word}"));
        }
    }
    Ok(())
}

fn check_cargo(arguments: &[String]) -> Result<(), String> {
    for pair in arguments.windows(2) {
        let directory = match pair[0].as_str() {
            "--test" => "tests",
            "--bench" => "benches",
            "-p" | "--package" => ".",
            _ => continue,
        };
        let file = root().join(directory).join(format!("{}.rs", pair[1]));
        if !file.exists() && !root().join(directory).join(&pair[1]).is_dir() {
            return Err(format!("cargo has no {} {}", pair[0], pair[1]));
        }
    }
    Ok(())
}

/// Checks one simple command.
pub fn check_command(help: &mut Help, words: &[String]) -> Result<(), String> {
    let is_prefix = |word: &String| {
        let is_assignment = word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        });
        is_assignment || PREFIXES.contains(&word.as_str())
    };
    let mut words = &words[words.iter().take_while(|word| is_prefix(word)).count()..];
    if words.first().is_some_and(|word| word == "timeout") {
        words = words.get(2..).unwrap_or_default();
    }
    for word in words {
        if let Some((_, path)) = word.split_once("http://localhost/") {
            check_path(path)?;
        }
    }
    let Some((program, arguments)) = words.split_first() else {
        return Ok(());
    };
    let arguments = arguments.iter().take_while(|word| !word.starts_with(['>', '<']));
    let arguments: Vec<String> = arguments.cloned().collect();
    match program.rsplit('/').next().unwrap_or_default() {
        "mayfly" => check_mayfly(help, &arguments),
        "firecracker" => check_mayfly(help, &[&["--no-api".to_owned()], &arguments[..]].concat()),
        "make" => check_make(&arguments),
        "cargo" => check_cargo(&arguments),
        _ => Ok(()),
    }
}
