//! Options and commands of the programs, for completions.

use std::collections::BTreeMap;

use crate::parse::{Block, Section};
use crate::topics::Topic;

/// Description of an option that another help text describes.
const ELSEWHERE: &str = "as in mayfly run";

/// A program with completions.
pub struct Program {
    /// Name.
    pub name: &'static str,
    /// Options before a command.
    pub options: Vec<Opt>,
    /// Commands. A program without commands has none.
    pub commands: Vec<Command>,
}

/// A command, or a command of a command.
pub struct Command {
    /// Name.
    pub name: String,
    /// First sentence of the description.
    pub summary: String,
    /// Options.
    pub options: Vec<Opt>,
    /// Kind of the arguments.
    pub argument: Kind,
    /// Its commands, such as those of `mayfly ctl`.
    pub commands: Vec<Command>,
}

/// An option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opt {
    /// Names, such as `-m` and `--memory`.
    pub names: Vec<String>,
    /// Name of the value, if the option takes one.
    pub value: Option<String>,
    /// First sentence of the description.
    pub summary: String,
}

/// Kind of a value, for which completions exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No value, or one without completion.
    Other,
    /// Path of a file.
    File,
    /// Path of a directory.
    Directory,
    /// One of these words.
    Words(Vec<String>),
}

/// Returns the kind of the value `name`.
pub fn kind(name: &str) -> Kind {
    // `DIR`, `KERNEL`, `SOCKET|fd:NUMBER`, `ID=PATH[,ro]`, but `1|2`.
    let place = name.split(['[', ',']).next().unwrap_or_default();
    let place = place.rsplit('=').next().unwrap_or_default();
    match place {
        "DIR" => Kind::Directory,
        "FILE" | "PATH" | "KERNEL" | "SOCKET" | "SOCKET|fd:NUMBER" => Kind::File,
        _ => {
            let words: Vec<&str> = name.split('|').collect();
            let is_word = |word: &&str| !word.is_empty() && !word.contains(char::is_uppercase);
            if words.len() > 1 && words.iter().all(is_word) {
                return Kind::Words(words.into_iter().map(str::to_owned).collect());
            }
            Kind::Other
        }
    }
}

impl Opt {
    /// Returns the kind of the value.
    pub fn kind(&self) -> Kind {
        self.value.as_deref().map_or(Kind::Other, kind)
    }
}

/// Returns the programs with their commands.
pub fn programs(topics: &[Topic]) -> Vec<Program> {
    let shared: BTreeMap<String, String> = topics
        .iter()
        .filter(|topic| topic.commands == ["run"])
        .flat_map(options)
        .map(|option| (option.names.concat(), option.summary))
        .collect();
    let described = |topic: &Topic| {
        let mut options = options(topic);
        for option in &mut options {
            if option.summary == ELSEWHERE || option.summary.is_empty() {
                option.summary = shared.get(&option.names.concat()).cloned().unwrap_or_default();
            }
        }
        options
    };
    let of_mayfly = |topic: &&Topic| topic.program == "mayfly" && !topic.commands.is_empty();
    // Firecracker's flags follow the program itself.
    let is_flags = |topic: &Topic| topic.commands == ["firecracker"];
    let mut commands = Vec::new();
    let mut flags = Vec::new();
    for topic in topics.iter().filter(of_mayfly) {
        if is_flags(topic) {
            flags = described(topic);
            continue;
        }
        for name in topic.commands {
            let mut options = described(topic);
            options.retain(|option| has_option(topic, name, option));
            commands.push(Command {
                name: (*name).to_owned(),
                summary: summary_of(topics, name).unwrap_or_else(|| topic.help.summary.clone()),
                options,
                argument: argument(topic, name),
                commands: subcommands(topic),
            });
        }
    }
    let topic_names = commands.iter().map(|command: &Command| command.name.clone());
    let mut help_words: Vec<String> = topic_names.collect();
    help_words.push("firecracker".into());
    commands.push(Command {
        name: "help".into(),
        summary: summary_of(topics, "help").unwrap_or_default(),
        options: Vec::new(),
        argument: Kind::Words(help_words),
        commands: Vec::new(),
    });
    let jailer = topics.iter().find(|topic| topic.program == "mayfly-jailer");
    vec![
        Program {
            name: "mayfly",
            options: flags,
            commands,
        },
        Program {
            name: "mayfly-jailer",
            options: jailer.map(described).unwrap_or_default(),
            commands: Vec::new(),
        },
    ]
}

/// Returns the summary of the command `name` in the help text of mayfly.
fn summary_of(topics: &[Topic], name: &str) -> Option<String> {
    let entries = topics.first()?.help.sections.iter().flat_map(entries);
    let mut found = entries.filter(|(term, _)| term.split(' ').next() == Some(name));
    found.next().map(|(_, description)| summary(description))
}

/// Returns the terms and descriptions of a section.
fn entries(section: &Section) -> impl Iterator<Item = (&str, &[String])> {
    section.blocks.iter().filter_map(|block| match block {
        Block::Entry { term, description } => Some((term.as_str(), description.as_slice())),
        Block::Paragraph(_) => None,
    })
}

/// Returns the part of `description` before its first sentence ends, or its default begins.
fn summary(description: &[String]) -> String {
    let text: Vec<&str> = description
        .iter()
        .take_while(|line| !line.starts_with(' '))
        .map(String::as_str)
        .collect();
    let text = text.join(" ");
    let ends = [". ", "; ", ": ", " (default", " ("];
    let end = ends.iter().filter_map(|end| text.find(end)).min();
    text[..end.unwrap_or(text.len())]
        .trim_end_matches(['.', ':'])
        .to_owned()
}

/// Returns the options of a help text. An option that it lists twice has its first description.
fn options(topic: &Topic) -> Vec<Opt> {
    let mut options: Vec<Opt> = Vec::new();
    for (term, description) in topic.help.sections.iter().flat_map(entries) {
        if !term.starts_with('-') {
            continue;
        }
        for option in parse_term(term, &summary(description)) {
            if !options.iter().any(|known| known.names == option.names) {
                options.push(option);
            }
        }
    }
    if !options
        .iter()
        .any(|option| option.names.iter().any(|name| name == "--help"))
    {
        options.push(Opt {
            names: vec!["-h".into(), "--help".into()],
            value: None,
            summary: "show the options".into(),
        });
    }
    options
}

/// Parses a term such as `-m, --memory SIZE`, `--uid UID, --gid GID` or `--timings, --trace FILE,`.
fn parse_term(term: &str, summary: &str) -> Vec<Opt> {
    let mut options = Vec::new();
    let mut short = None;
    for part in term.split(", ") {
        let part = part.trim_end_matches(',');
        let (name, value) = part
            .split_once(' ')
            .map_or((part, None), |(name, value)| (name, Some(value)));
        if !name.starts_with("--") {
            short = Some(name.to_owned());
            continue;
        }
        let names = short.take().into_iter().chain([name.to_owned()]);
        options.push(Opt {
            names: names.collect(),
            value: value.map(str::to_owned),
            summary: summary.to_owned(),
        });
    }
    options
}

/// Returns the commands of a help text: terms in small letters, with options in brackets.
fn subcommands(topic: &Topic) -> Vec<Command> {
    let mut commands = Vec::new();
    if topic.commands != ["ctl"] {
        return commands;
    }
    let sections = topic
        .help
        .sections
        .iter()
        .filter(|section| section.title != "exit status");
    for (term, description) in sections.flat_map(entries) {
        let name = term.split(' ').next().unwrap_or_default();
        let known = commands.iter().any(|command: &Command| command.name == name);
        if known || !name.starts_with(char::is_lowercase) {
            continue;
        }
        let brackets = term.split('[').skip(1).filter_map(|part| part.split(']').next());
        let options = brackets.filter(|text| text.starts_with("--"));
        commands.push(Command {
            name: name.to_owned(),
            summary: summary(description),
            options: options.flat_map(|text| parse_term(text, "")).collect(),
            argument: Kind::Other,
            commands: Vec::new(),
        });
    }
    commands
}

/// Returns the arguments of the command `name` in its usage.
fn usage<'a>(topic: &'a Topic, name: &str) -> Option<&'a str> {
    let start = format!("mayfly {name} ");
    topic.help.usage.iter().find_map(|line| line.strip_prefix(&start))
}

/// Returns true if the command `name` has `option` of its help text. If the text describes several commands, their usage lists the options.
fn has_option(topic: &Topic, name: &str, option: &Opt) -> bool {
    let is_listed =
        |known: &String| usage(topic, name).is_some_and(|usage| usage.contains(&format!("[{known}")));
    topic.commands.len() == 1
        || option
            .names
            .iter()
            .any(|known| known == "--help" || is_listed(known))
}

/// Returns the kind of the arguments of the command `name`, from its usage.
fn argument(topic: &Topic, name: &str) -> Kind {
    let usage = usage(topic, name);
    let word = usage.and_then(|line| line.split(' ').next()).unwrap_or_default();
    if word.starts_with(['[', '-']) {
        return Kind::Other;
    }
    kind(word)
}

#[cfg(test)]
mod tests {
    use super::{Kind, Opt, kind, parse_term, programs, summary};
    use crate::topics::topics;

    #[test]
    fn values_have_kinds() {
        for (name, expected) in [
            ("DIR", Kind::Directory),
            ("FILE", Kind::File),
            ("ID=PATH[,ro]", Kind::File),
            ("PATH[,ro][,shared]", Kind::File),
            ("SOCKET|fd:NUMBER", Kind::File),
            ("SIZE", Kind::Other),
            ("AMOUNT|OFF", Kind::Other),
            ("1|2", Kind::Words(vec!["1".into(), "2".into()])),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }

    #[test]
    fn terms_name_several_options() {
        let names = |term| {
            let options = parse_term(term, "");
            options
                .into_iter()
                .map(|Opt { names, value, .. }| format!("{}={}", names.join("|"), value.unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        assert_eq!(names("-m, --memory SIZE"), ["-m|--memory=SIZE"]);
        assert_eq!(names("--uid UID, --gid GID"), ["--uid=UID", "--gid=GID"]);
        assert_eq!(names("--timings, --trace FILE,"), ["--timings=", "--trace=FILE"]);
    }

    #[test]
    fn summary_is_first_sentence() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        assert_eq!(summary(&lines(&["set it", "up (default 1)"])), "set it up");
        assert_eq!(summary(&lines(&["is one of:", "  tap"])), "is one of");
    }

    #[test]
    fn all_commands_and_options_are_found() {
        let programs = programs(&topics());
        let [mayfly, jailer] = programs.as_slice() else {
            panic!("{} programs", programs.len())
        };
        let command = |name: &str| {
            let found = mayfly.commands.iter().find(|command| command.name == name);
            found.unwrap_or_else(|| panic!("{name} is missing"))
        };
        let has = |options: &[Opt], name: &str| {
            options
                .iter()
                .any(|option| option.names.iter().any(|known| known == name))
        };
        assert!(has(&mayfly.options, "--config-file"));
        assert!(has(&jailer.options, "--chroot-base-dir") && has(&jailer.options, "--gid"));
        for (name, option) in [
            ("run", "--disk"),
            ("run", "-m"),
            ("run", "--allow"),
            ("restore", "--seccomp-filter"),
            ("restore", "--trace"),
            ("snapshot", "--diff"),
            ("standby", "--state-dir"),
            ("doctor", "--json"),
            ("ctl", "--timeout"),
        ] {
            assert!(has(&command(name).options, option), "{name} {option}");
        }
        for name in ["snapshot-info", "snapshot-merge"] {
            let options = &command(name).options;
            assert!(
                options.len() == 1 && has(options, "--help"),
                "{name}: {options:?}"
            );
        }
        assert_eq!(command("restore").argument, Kind::Directory);
        assert_eq!(command("run").argument, Kind::File);
        assert_eq!(command("shell").argument, Kind::File);
        let ctl = &command("ctl").commands;
        for name in ["status", "drive", "net", "wake", "request", "flush-metrics"] {
            assert!(ctl.iter().any(|command| command.name == name), "ctl {name}");
        }
        let drive = ctl.iter().find(|command| command.name == "drive");
        assert!(drive.is_some_and(|drive| has(&drive.options, "--bandwidth")));
        for command in &mayfly.commands {
            assert!(!command.summary.is_empty(), "{}", command.name);
            for option in &command.options {
                assert!(!option.summary.is_empty(), "{} {:?}", command.name, option.names);
            }
        }
    }
}
