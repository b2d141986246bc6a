//! Text without the characters that control a terminal. All output except that of the guest passes through here: names and paths
//! may come from a file or process of an attacker.

use std::fmt::Write as _;

/// Escapes the control characters of `text`: it stays on one line and cannot control a terminal.
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

/// Escapes the control characters of `text` except line feeds and tabs, in the form of JSON: a JSON text keeps its meaning. Replaces
/// bytes that are not UTF-8, because terminals with 8-bit controls interpret some.
pub fn printable_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut lines = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && !matches!(character, '\n' | '\t') {
            // Writing to a String cannot fail.
            let _ = write!(lines, "\\u{:04x}", u32::from(character));
        } else {
            lines.push(character);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use serde_json::{Value, json};

    use super::{printable, printable_lines};

    #[test]
    fn line_has_no_control_characters() {
        let text = "a\u{1b}[2J\r\nb\t\u{7f}\u{9b}ü\"\\";
        assert_eq!(printable(text), "a\\u{1b}[2J\\r\\nb\\t\\u{7f}\\u{9b}ü\"\\");
    }

    #[test]
    fn lines_keep_line_feeds_and_tabs_only() {
        let text = b"a\x1b[2J\n\tb\r\x9b\xc2\x9b\x7f\xc3\xbc";
        assert_eq!(
            printable_lines(text),
            "a\\u001b[2J\n\tb\\u000d\u{fffd}\\u009b\\u007fü"
        );
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = json!({"path": "a\u{1b}\u{7f}\u{9b}\"\\\n"});
        let printed = printable_lines(value.to_string().as_bytes());
        assert!(!printed.contains(char::is_control), "{printed}");
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), value);
    }

    proptest! {
        #[test]
        fn any_bytes_become_printable(bytes in any::<Vec<u8>>()) {
            let lines = printable_lines(&bytes);
            assert!(lines.chars().all(|character| matches!(character, '\n' | '\t') || !character.is_control()));
            assert!(!printable(&lines).contains(char::is_control));
        }
    }
}
