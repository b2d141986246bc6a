//! Man pages, in the macros of man(7).

use std::fmt::Write as _;

use crate::parse::{Block, Section};
use crate::topics::Topic;

/// Returns the man page of `topic`. `date` is that of the sources.
pub fn page(topic: &Topic, topics: &[Topic], date: &str) -> String {
    let help = &topic.help;
    let mut page = format!(
        ".\\\" Generated from the help text of {}. Do not edit.\n.TH {} 1 {} \"mayfly {}\" \"User Commands\"\n.nh\n.ad l\n",
        topic.program,
        escape(&topic.page.to_uppercase()),
        date,
        env!("CARGO_PKG_VERSION"),
    );
    let name = escape(topic.page);
    let _ = write!(
        page,
        ".SH NAME\n{name} \\- {}\n.SH SYNOPSIS\n.nf\n",
        escape(&help.summary)
    );
    for line in &help.usage {
        page.push_str(&line_of(&term(line)));
    }
    page.push_str(".fi\n");
    let mut heading = "";
    for section in help.sections.iter().filter(|section| !section.blocks.is_empty()) {
        add_section(&mut page, section, &mut heading);
    }
    if !help.examples.is_empty() {
        page.push_str(".SH EXAMPLES\n.nf\n");
        for line in &help.examples {
            page.push_str(&line_of(&escape(line)));
        }
        page.push_str(".fi\n");
    }
    let others = topics.iter().filter(|other| other.page != topic.page);
    let others: Vec<String> = others
        .map(|other| format!(".BR {} (1)", escape(other.page)))
        .collect();
    let _ = writeln!(page, ".SH SEE ALSO\n{}", others.join(",\n"));
    page
}

/// Adds a section below its heading. `heading` is the present one.
fn add_section(page: &mut String, section: &Section, heading: &mut &'static str) {
    let is_option = |block: &Block| matches!(block, Block::Entry { term, .. } if term.starts_with('-'));
    let (new, title) = match section.title.as_str() {
        "exit status" => ("EXIT STATUS", ""),
        "" if heading.is_empty() => ("DESCRIPTION", ""),
        "" => ("NOTES", ""),
        title if section.blocks.iter().any(is_option) => ("OPTIONS", title),
        title => ("COMMANDS", title),
    };
    if new != *heading {
        let _ = writeln!(page, ".SH {new}");
        *heading = new;
    }
    let title = if title == "options" { "" } else { title };
    if !title.is_empty() {
        let _ = writeln!(page, ".SS {}", escape(title));
    }
    let mut is_first = true;
    let mut continues = false;
    for block in &section.blocks {
        match block {
            Block::Paragraph(text) => {
                // A heading starts a paragraph by itself.
                if !is_first {
                    page.push_str(".PP\n");
                }
                page.push_str(&line_of(&escape(text)));
            }
            Block::Entry {
                term: name,
                description,
            } => {
                page.push_str(if continues { ".TQ\n" } else { ".TP\n" });
                page.push_str(&line_of(&term(name)));
                add_description(page, description);
                continues = description.is_empty();
            }
        }
        is_first = false;
    }
}

/// Adds a description. Its nested lines keep their line breaks.
fn add_description(page: &mut String, description: &[String]) {
    let mut is_nested = false;
    for line in description {
        let nested = line.starts_with(' ');
        if nested || is_nested {
            page.push_str(".br\n");
        }
        is_nested = nested;
        page.push_str(&line_of(&escape(line.trim())));
    }
}

/// Formats a term: options in bold, values in italics.
fn term(text: &str) -> String {
    let mut formatted = String::new();
    let mut word = String::new();
    let flush = |word: &mut String, formatted: &mut String| {
        let is_value =
            word.len() > 1 && word.starts_with(char::is_uppercase) && !word.contains(char::is_lowercase);
        let font = if word.starts_with('-') && word.len() > 1 {
            Some('B')
        } else {
            is_value.then_some('I')
        };
        match font {
            Some(font) => {
                let _ = write!(formatted, "\\f{font}{}\\fR", escape(word));
            }
            None => formatted.push_str(&escape(word)),
        }
        word.clear();
    };
    for character in text.chars() {
        if character.is_ascii_alphanumeric() || matches!(character, '-' | '_') {
            word.push(character);
        } else {
            flush(&mut word, &mut formatted);
            formatted.push_str(&escape(&character.to_string()));
        }
    }
    flush(&mut word, &mut formatted);
    formatted
}

/// Returns `text` as a line of text: a dot or an apostrophe at its start would begin a request.
fn line_of(text: &str) -> String {
    let guard = if text.starts_with(['.', '\'']) { "\\&" } else { "" };
    format!("{guard}{text}\n")
}

/// Escapes the characters with a meaning for roff, and those that it replaces by typographic ones.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{escape, line_of, page, term};
    use crate::topics::topics;

    #[test]
    fn characters_of_roff_are_escaped() {
        assert_eq!(
            escape("a\\b 'c' --x ~^`"),
            "a\\eb \\(aqc\\(aq \\-\\-x \\(ti\\(ha\\(ga"
        );
        assert_eq!(line_of(".x"), "\\&.x\n");
        assert_eq!(term("--disk PATH[,ro]"), "\\fB\\-\\-disk\\fR \\fIPATH\\fR[,ro]");
        assert_eq!(term("-h"), "\\fB\\-h\\fR");
    }

    /// Returns the words of `text`, without the marks of roff.
    fn words(text: &str) -> Vec<String> {
        let plain = text
            .replace("\\fB", "")
            .replace("\\fI", "")
            .replace("\\fR", "")
            .replace("\\(aq", "'")
            .replace("\\(ti", "~")
            .replace("\\(ha", "^")
            .replace("\\(ga", "`")
            .replace("\\-", "-")
            .replace("\\e", "\\");
        plain.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn page_has_each_word_of_the_help_text() {
        let topics = topics();
        for topic in &topics {
            let page = words(&page(topic, &topics, "2026-12-01"));
            let mut rest = page.iter();
            // Without the first line, which has the command in place of the page.
            let body = topic.text.split_once('\n').unwrap_or_default().1;
            for line in body.lines() {
                let is_heading = ["exit status:", "options:"]
                    .iter()
                    .find_map(|start| line.strip_prefix(start));
                let line = is_heading.unwrap_or(line);
                let line = ["usage: ", "Try:   "]
                    .iter()
                    .find_map(|start| line.strip_prefix(start))
                    .unwrap_or(line);
                for word in line.split_whitespace() {
                    let word = word.to_owned();
                    let found = rest.any(|known| *known == word || format!("{known}:") == word);
                    assert!(
                        found,
                        "{}: {word:?} of {line:?} is missing or out of place",
                        topic.page
                    );
                }
            }
        }
    }
}
