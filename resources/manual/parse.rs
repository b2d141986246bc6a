//! Structure of a help text.
//!
//! ```text
//! NAME - SUMMARY
//!
//! usage: LINE
//!        LINE
//!
//! Paragraph.
//!
//! Title of a section:
//!   entry               description, which continues at its column
//!   Paragraph of the section.
//!
//! exit status:
//!   0     meaning
//!
//! Try:   example
//! ```

/// Maximum indentation of a term. Descriptions continue behind it.
const MAX_INDENT: usize = 6;

/// A help text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Help {
    /// Summary in the first line.
    pub summary: String,
    /// Lines of the usage.
    pub usage: Vec<String>,
    /// Sections. The first has no title.
    pub sections: Vec<Section>,
    /// Examples.
    pub examples: Vec<String>,
}

/// A section.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Title, without its colon.
    pub title: String,
    /// Content.
    pub blocks: Vec<Block>,
}

/// Part of a section.
#[derive(Debug, PartialEq, Eq)]
pub enum Block {
    /// Text in one line.
    Paragraph(String),
    /// An option, a command or a value.
    Entry {
        /// Name and arguments.
        term: String,
        /// Lines of the description. Those with a blank at the start stay as they are.
        description: Vec<String>,
    },
}

/// Parses `text`. Descriptions start at `column`, unless two blanks end the term before.
pub fn parse(text: &str, column: usize) -> Help {
    let mut lines = text.lines().peekable();
    let first = lines.next().unwrap_or_default();
    let summary = first.split_once(" - ").map_or(first, |(_, summary)| summary);
    let mut parser = Parser {
        help: Help {
            summary: summary.to_owned(),
            sections: vec![Section::default()],
            ..Help::default()
        },
        column,
        paragraph: None,
    };
    while let Some(line) = lines.next() {
        let follows = |line: &&str| line.starts_with("       ");
        if let Some(usage) = line.strip_prefix("usage: ") {
            parser.help.usage.push(usage.to_owned());
            while let Some(more) = lines.next_if(follows) {
                parser.help.usage.push(more.trim().to_owned());
            }
        } else if let Some(example) = line.strip_prefix("Try:   ") {
            parser.help.examples.push(example.to_owned());
            while let Some(more) = lines.next_if(follows) {
                parser.help.examples.push(more.trim().to_owned());
            }
        } else if line.is_empty() {
            parser.paragraph = None;
        } else {
            let is_before_entry = lines.peek().is_some_and(|next| next.starts_with("  "));
            parser.add(line, is_before_entry);
        }
    }
    parser.help
}

struct Parser {
    help: Help,
    column: usize,
    /// Indentation of the paragraph that the next line may continue.
    paragraph: Option<usize>,
}

impl Parser {
    fn section(&mut self) -> &mut Section {
        let sections = &mut self.help.sections;
        if sections.is_empty() {
            sections.push(Section::default());
        }
        let last = sections.len() - 1;
        &mut sections[last]
    }

    fn start_section(&mut self, title: &str) {
        self.paragraph = None;
        self.help.sections.push(Section {
            title: title.to_owned(),
            blocks: Vec::new(),
        });
    }

    /// Adds a line that is not blank.
    fn add(&mut self, line: &str, is_before_entry: bool) {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(rest) = line.strip_prefix("exit status:") {
            self.start_section("exit status");
            if !rest.is_empty() {
                self.add_text(rest.trim(), 0);
            }
        } else if let Some(title) = line.strip_suffix(':')
            && indent == 0
            && is_before_entry
            && self.paragraph.is_none()
        {
            self.start_section(title);
        } else if indent == 0 || (indent == 2 && self.is_text(line)) {
            let is_apart = self.paragraph.is_none() && !self.section().title.is_empty();
            if indent == 0 && is_apart && self.section().title != "exit status" {
                self.start_section("");
            }
            self.add_text(text, indent);
        } else {
            self.paragraph = None;
            self.add_entry(line, indent);
        }
    }

    /// Returns true if `line`, in a section, belongs to a paragraph.
    fn is_text(&self, line: &str) -> bool {
        let text = line.trim_start();
        let is_sentence = text.starts_with(char::is_uppercase) && find_gap(line, self.column).is_none();
        self.paragraph == Some(2) || is_sentence
    }

    fn add_text(&mut self, text: &str, indent: usize) {
        let continues = self.paragraph == Some(indent);
        self.paragraph = Some(indent);
        let blocks = &mut self.section().blocks;
        match blocks.last_mut() {
            Some(Block::Paragraph(paragraph)) if continues => {
                paragraph.push(' ');
                paragraph.push_str(text);
            }
            _ => blocks.push(Block::Paragraph(text.to_owned())),
        }
    }

    /// Adds the first line of an entry, or one that continues its description.
    fn add_entry(&mut self, line: &str, indent: usize) {
        let column = self.column;
        let blocks = &mut self.section().blocks;
        if indent > MAX_INDENT
            && let Some(Block::Entry { description, .. }) = blocks.last_mut()
        {
            let nested = if indent > column { "  " } else { "" };
            description.push(format!("{nested}{}", line.trim_start()));
            return;
        }
        let (term, description) = split_entry(line, column);
        blocks.push(Block::Entry {
            term: term.to_owned(),
            description: description.map(str::to_owned).into_iter().collect(),
        });
    }
}

/// Returns the position of the first two blanks between a term and its description, before `column`.
fn find_gap(line: &str, column: usize) -> Option<usize> {
    let indent = line.len() - line.trim_start().len();
    let gap = line[indent..].find("  ").map(|gap| indent + gap);
    gap.filter(|gap| *gap < column)
}

/// Splits the first line of an entry into its term and its description.
fn split_entry(line: &str, column: usize) -> (&str, Option<&str>) {
    if let Some(gap) = find_gap(line, column) {
        return (line[..gap].trim_start(), Some(line[gap..].trim_start()));
    }
    match (line.get(..column), line.get(column..)) {
        (Some(term), Some(description)) if term.ends_with(' ') => (term.trim(), Some(description)),
        _ => (line.trim(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::{Block, parse};
    use crate::topics::topics;

    fn entry(term: &str, description: &[&str]) -> Block {
        Block::Entry {
            term: term.to_owned(),
            description: description.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn help_has_sections_entries_and_examples() {
        let text = "a b - do it\n\nusage: a b X\n       a c\n\nFirst line of\ntext:\n  ok    fine\n\nSet up:\n  -m, --memory SIZE     \
                    set it\n      --api-sock SOCKET connect\n                        to it:\n                          tap:NAME  a tap\n  \
                    Limit it, and\n  go on.\n\nKeys, if any.\n\nexit status: that of x, or\n  N     code\nSignals end it.\n\nTry:   a b \
                    1\n       a b 2\n";
        let help = parse(text, 24);
        assert_eq!(
            (help.summary.as_str(), help.usage.len(), help.examples.len()),
            ("do it", 2, 2)
        );
        let paragraph = |text: &str| Block::Paragraph(text.to_owned());
        let sections: Vec<(&str, &[Block])> = help
            .sections
            .iter()
            .map(|section| (section.title.as_str(), section.blocks.as_slice()))
            .collect();
        let expected: [(&str, &[Block]); 4] = [
            ("", &[paragraph("First line of text:"), entry("ok", &["fine"])]),
            (
                "Set up",
                &[
                    entry("-m, --memory SIZE", &["set it"]),
                    entry("--api-sock SOCKET", &["connect", "to it:", "  tap:NAME  a tap"]),
                    paragraph("Limit it, and go on."),
                ],
            ),
            ("", &[paragraph("Keys, if any.")]),
            (
                "exit status",
                &[
                    paragraph("that of x, or"),
                    entry("N", &["code"]),
                    paragraph("Signals end it."),
                ],
            ),
        ];
        assert_eq!(sections, expected);
    }

    #[test]
    fn terms_of_all_topics_are_short_and_described() {
        for topic in topics() {
            for section in &topic.help.sections {
                for (index, block) in section.blocks.iter().enumerate() {
                    let Block::Entry { term, description } = block else {
                        continue;
                    };
                    let is_list = term.ends_with(',');
                    assert!(is_list || !description.is_empty(), "{}: {term}", topic.page);
                    assert!(!term.contains("  "), "{}: {term}", topic.page);
                    let next = section.blocks.get(index + 1);
                    assert!(
                        !is_list || matches!(next, Some(Block::Entry { .. })),
                        "{}: {term}",
                        topic.page
                    );
                }
            }
        }
    }
}
