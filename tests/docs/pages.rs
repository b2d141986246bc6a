//! The pages of the documentation, and the shell code in them.
//!
//! A comment on the line before a `sh` block determines its treatment:
//!
//! | comment | treatment |
//! |---|---|
//! | `<!-- test: run -->` | runs in bash on this machine's `/dev/kvm`, in a directory that holds the test guests |
//! | `<!-- test: run, own network -->` | the same in a network namespace of its own, which requires root |
//! | `<!-- test: emulated-host -->` | each `mayfly run` line runs on the emulated host, with Debian's images at their paths |
//! | `<!-- test: goals -->` | goals of `make` and commands of `cargo`; checked, not run |
//! | `<!-- not run in CI: DATE, PROGRAM VERSION -->` | a recipe that requires other programs or images; checked, not run |
//!
//! A `text` block after `<!-- output -->` lists lines that the block before it prints, in this order.

/// Every page with commands, with its path in the repository.
pub const PAGES: [(&str, &str); 19] = [
    ("README.md", include_str!("../../README.md")),
    ("CONTRIBUTING.md", include_str!("../../CONTRIBUTING.md")),
    ("SECURITY.md", include_str!("../../SECURITY.md")),
    ("docs/architecture.md", include_str!("../../docs/architecture.md")),
    ("docs/console.md", include_str!("../../docs/console.md")),
    ("docs/crashes.md", include_str!("../../docs/crashes.md")),
    ("docs/debugging.md", include_str!("../../docs/debugging.md")),
    (
        "docs/firecracker-compatibility.md",
        include_str!("../../docs/firecracker-compatibility.md"),
    ),
    ("docs/glossary.md", include_str!("../../docs/glossary.md")),
    ("docs/guests.md", include_str!("../../docs/guests.md")),
    ("docs/images.md", include_str!("../../docs/images.md")),
    ("docs/install.md", include_str!("../../docs/install.md")),
    ("docs/networking.md", include_str!("../../docs/networking.md")),
    ("docs/performance.md", include_str!("../../docs/performance.md")),
    ("docs/profiling.md", include_str!("../../docs/profiling.md")),
    (
        "docs/scale-to-zero.md",
        include_str!("../../docs/scale-to-zero.md"),
    ),
    ("docs/security.md", include_str!("../../docs/security.md")),
    ("docs/snapshots.md", include_str!("../../docs/snapshots.md")),
    ("docs/standby.md", include_str!("../../docs/standby.md")),
];

/// Treatment of a block of shell code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Runs on this machine.
    Run {
        /// Runs in a network namespace of its own.
        own_network: bool,
    },
    /// Runs on the emulated host.
    EmulatedHost,
    /// Goals and builds, which are checked only.
    Goals,
    /// A recipe, which is checked only: its date and version.
    Recipe(String),
}

/// A block of shell code.
#[derive(Debug)]
pub struct Block {
    /// Number of its first line in the page.
    pub line: usize,
    /// The code.
    pub code: String,
    /// Treatment by the comment before it.
    pub treatment: Treatment,
    /// Lines that it prints, in this order.
    pub output: Vec<String>,
}

/// Returns the shell blocks of a page.
///
/// # Panics
/// If a block lacks a comment, or the comment is unknown.
pub fn blocks(name: &str, page: &str) -> Vec<Block> {
    let lines: Vec<&str> = page.lines().collect();
    let mut blocks: Vec<Block> = Vec::new();
    let mut number = 0;
    while number < lines.len() {
        let Some(language) = lines[number].strip_prefix("```") else {
            number += 1;
            continue;
        };
        let first = number + 1;
        let length = lines[first..].iter().position(|line| *line == "```");
        let length = length.unwrap_or_else(|| panic!("{name}:{first}: the block has no end"));
        let comment = number.checked_sub(1).map_or("", |before| lines[before]);
        let content = &lines[first..first + length];
        match language {
            "sh" => blocks.push(Block {
                line: first + 1,
                code: content.iter().map(|line| format!("{line}\n")).collect(),
                treatment: treatment(comment)
                    .unwrap_or_else(|| panic!("{name}:{first}: no known comment before the block")),
                output: Vec::new(),
            }),
            "text" if comment == "<!-- output -->" => {
                let block = blocks.last_mut();
                let block = block.unwrap_or_else(|| panic!("{name}:{first}: output of no block"));
                block.output.extend(content.iter().map(|&line| line.to_owned()));
            }
            _ => {}
        }
        number = first + length + 1;
    }
    blocks
}

fn treatment(comment: &str) -> Option<Treatment> {
    let text = comment.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    match text {
        "test: run" => Some(Treatment::Run { own_network: false }),
        "test: run, own network" => Some(Treatment::Run { own_network: true }),
        "test: emulated-host" => Some(Treatment::EmulatedHost),
        "test: goals" => Some(Treatment::Goals),
        _ => {
            let version = text.strip_prefix("not run in CI: ")?;
            Some(Treatment::Recipe(version.to_owned()))
        }
    }
}

/// Splits shell code into simple commands, each a list of words without quotes. Variables stay as they are.
pub fn commands(code: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = code.replace("\\\n", " ").chars().collect::<Vec<_>>().into_iter();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(character),
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => {
                characters.by_ref().find(|&next| next == '\n');
                commands.push(Vec::new());
            }
            (None, ' ' | '\t') => commands.last_mut().unwrap().extend(word.take()),
            (None, '\n' | ';' | '&' | '|' | '(' | ')') => {
                commands.last_mut().unwrap().extend(word.take());
                commands.push(Vec::new());
            }
            (None, _) => word.get_or_insert_default().push(character),
        }
    }
    commands.last_mut().unwrap().extend(word);
    commands.retain(|command| !command.is_empty());
    commands
}
