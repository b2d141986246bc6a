//! A line of the log's file: `2026-11-22T01:02:03.123456789 [id:thread[:LEVEL][:file:line]] text`.

use std::fmt::Write as _;
use std::time::Duration;

use api::metrics::file::ATOMIC;
use log::Level;

use super::stamp::Stamp;

/// What a line tells.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// When, counted from 1970-01-01 in UTC.
    pub time: Duration,
    /// Name of the VM.
    pub id: &'a str,
    /// Name of the thread.
    pub thread: &'a str,
    /// How much it matters, if that is to be shown.
    pub level: Option<Level>,
    /// Source file and line, if they are to be shown.
    pub origin: Option<(&'a str, u32)>,
    /// What is said.
    pub text: &'a str,
    /// What is said in any case, however long the text is.
    pub note: &'a str,
}

impl Line<'_> {
    /// The line with its end, in as many bytes as a FIFO takes as a whole; the text is cut where it has more.
    pub fn render(&self) -> String {
        let mut line = format!("{} [{}:{}", Stamp(self.time), self.id, self.thread);
        // Writing to a String cannot fail.
        if let Some(level) = self.level {
            let _ = write!(line, ":{level}");
        }
        if let Some((file, number)) = self.origin {
            let _ = write!(line, ":{file}:{number}");
        }
        line.push_str("] ");
        cut(&mut line, ATOMIC - 1);
        line.push_str(&printable(self.text));
        cut(&mut line, (ATOMIC - 1).saturating_sub(self.note.len()));
        line.push_str(self.note);
        cut(&mut line, ATOMIC - 1);
        line.push('\n');
        line
    }
}

/// `text` without what would end the line or steer a terminal: it may hold what a guest or a client has chosen.
pub fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

fn cut(line: &mut String, mut length: usize) {
    while !line.is_char_boundary(length.min(line.len())) {
        length -= 1;
    }
    line.truncate(length);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use api::metrics::file::ATOMIC;
    use log::Level;

    use super::Line;

    fn line(text: &str) -> Line<'_> {
        Line {
            time: Duration::new(1_795_309_323, 123_456_789),
            id: "vm-1",
            thread: "main",
            level: None,
            origin: None,
            text,
            note: "",
        }
    }

    #[test]
    fn a_line_has_what_is_to_be_shown() {
        let plain = line("hello");
        let level = Line {
            level: Some(Level::Warn),
            ..plain.clone()
        };
        let both = Line {
            origin: Some(("src/run.rs", 7)),
            ..level.clone()
        };
        for (line, expected) in [
            (plain, "vm-1:main"),
            (level, "vm-1:main:WARN"),
            (both, "vm-1:main:WARN:src/run.rs:7"),
        ] {
            assert_eq!(
                line.render(),
                format!("2026-11-22T01:02:03.123456789 [{expected}] hello\n")
            );
        }
    }

    #[test]
    fn a_text_cannot_look_like_another_line() {
        let text = line("a\nb\r\x1b[2J\u{85}\"é").render();
        assert!(text.ends_with("] a\\nb\\r\\u{1b}[2J\\u{85}\"é\n"), "{text}");
    }

    #[test]
    fn a_long_text_is_cut_and_its_note_is_not() {
        for shift in 0..4 {
            let text = "x".repeat(shift) + &"€".repeat(ATOMIC);
            let one = Line {
                note: " (3 lost)",
                ..line(&text)
            };
            let one = one.render();
            assert!(
                one.ends_with("€ (3 lost)\n") && one.len() <= ATOMIC,
                "{}",
                one.len()
            );
            assert!(one.len() > ATOMIC - 4, "{}", one.len());
        }
    }

    #[test]
    fn whatever_is_long_the_line_is_not() {
        let long = "y".repeat(2 * ATOMIC);
        let one = Line {
            id: &long,
            note: &long,
            ..line(&long)
        };
        assert_eq!(one.render().len(), ATOMIC);
    }
}
