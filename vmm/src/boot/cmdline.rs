//! Command line.
//!
//! Device arguments are inserted before the argument `--`, because the arguments after it belong to the application of a
//! unikernel. In Linux and Unikraft a `--` within quotes is text. Linux supports `"`; Unikraft also supports `'`, and in newer
//! releases a backslash before a quote. This module follows Unikraft. If a quote then stays open to the end of the line
//! (`motd=it's -- run`), quotes are ignored, and the first `--` between blanks counts.

use std::ffi::CString;

/// Error of the command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not printable ASCII, the only text that all guests accept.
    #[error(
        "cannot pass byte {byte:#04x} at position {position} of the command line to the guest: it is not printable ASCII"
    )]
    Byte {
        /// The byte.
        byte: u8,
        /// Position in the text, from 0.
        position: usize,
    },
    /// The line exceeds the capacity of the guest.
    #[error(
        "cannot pass a command line of {length} bytes ({added} for devices) to the guest: the limit is {limit}; shorten it"
    )]
    TooLong {
        /// Length of the line.
        length: usize,
        /// Length of the device arguments, with separators.
        added: usize,
        /// Maximum length.
        limit: usize,
    },
}

/// Inserts `device_arguments` into the command line of the user: before the argument `--`, or at the end without one. The text of
/// the user stays byte for byte. `capacity` is in bytes, with the terminating NUL.
///
/// # Errors
/// [`Error::Byte`] and [`Error::TooLong`].
pub fn compose(user: &str, device_arguments: &[String], capacity: usize) -> Result<CString, Error> {
    check_printable(user)?;
    let line = insert_arguments(user, device_arguments);
    check_printable(&line)?;
    if line.len() >= capacity {
        return Err(Error::TooLong {
            length: line.len(),
            added: line.len() - user.len(),
            limit: capacity.saturating_sub(1),
        });
    }
    CString::new(line).map_err(|error| Error::Byte {
        byte: 0,
        position: error.nul_position(),
    })
}

fn check_printable(text: &str) -> Result<(), Error> {
    let mut bytes = text.bytes().enumerate();
    match bytes.find(|(_, byte)| !(b' '..=b'~').contains(byte)) {
        Some((position, byte)) => Err(Error::Byte { byte, position }),
        None => Ok(()),
    }
}

fn insert_arguments(user: &str, device_arguments: &[String]) -> String {
    if device_arguments.is_empty() {
        return user.to_owned();
    }
    let (before, after) = user.split_at(find_separator(user).unwrap_or(user.len()));
    let mut line = before.to_owned();
    if !line.is_empty() && !line.ends_with(' ') {
        line.push(' ');
    }
    line.push_str(&device_arguments.join(" "));
    if !after.is_empty() {
        line.push(' ');
    }
    line + after
}

/// Returns the position of the argument `--`.
fn find_separator(line: &str) -> Option<usize> {
    let mut quote = None;
    let mut found = None;
    let mut previous = b' ';
    for (position, byte) in line.bytes().enumerate() {
        match quote {
            None if found.is_none() && is_separator(line.as_bytes(), position) => found = Some(position),
            None if matches!(byte, b'"' | b'\'') && previous != b'\\' && found.is_none() => {
                quote = Some(byte)
            }
            Some(open) if byte == open && previous != b'\\' => quote = None,
            _ => {}
        }
        previous = byte;
    }
    if quote.is_none() {
        return found;
    }
    (0..line.len()).find(|position| is_separator(line.as_bytes(), *position))
}

fn is_separator(line: &[u8], position: usize) -> bool {
    let starts = position.checked_sub(1).is_none_or(|before| line[before] == b' ');
    starts && matches!(&line[position..], [b'-', b'-'] | [b'-', b'-', b' ', ..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::{Error, compose};

    fn composed(user: &str) -> String {
        let devices = ["a=1".to_owned(), "b=2".to_owned()];
        compose(user, &devices, 4096).unwrap().into_string().unwrap()
    }

    #[test]
    fn devices_precede_separator() {
        for (user, expected) in [
            ("", "a=1 b=2"),
            ("nginx", "nginx a=1 b=2"),
            ("nginx ", "nginx a=1 b=2"),
            ("nginx -- -c x -- y ", "nginx a=1 b=2 -- -c x -- y "),
            ("nginx  --  x", "nginx  a=1 b=2 --  x"),
            ("-- x", "a=1 b=2 -- x"),
            (" -- x", " a=1 b=2 -- x"),
            ("nginx --", "nginx a=1 b=2 --"),
            ("nginx -- ", "nginx a=1 b=2 -- "),
            ("--", "a=1 b=2 --"),
            ("nginx --x -- y", "nginx --x a=1 b=2 -- y"),
            ("nginx x-- y", "nginx x-- y a=1 b=2"),
            ("nginx --- y", "nginx --- y a=1 b=2"),
        ] {
            assert_eq!(composed(user), expected, "{user:?}");
        }
    }

    #[test]
    fn quoted_separator_is_text() {
        for (user, expected) in [
            (
                "k env.vars=[ \"A=b -- c\" ] -- d",
                "k env.vars=[ \"A=b -- c\" ] a=1 b=2 -- d",
            ),
            ("k 'b -- c' -- d", "k 'b -- c' a=1 b=2 -- d"),
            ("k \"it's -- c\" -- d", "k \"it's -- c\" a=1 b=2 -- d"),
            ("k \"b -- c\"", "k \"b -- c\" a=1 b=2"),
            ("k \\\" -- d\\\"", "k \\\" a=1 b=2 -- d\\\""),
            ("k -- it's", "k a=1 b=2 -- it's"),
            ("k m=it's -- d", "k m=it's a=1 b=2 -- d"),
            ("k m=it's", "k m=it's a=1 b=2"),
        ] {
            assert_eq!(composed(user), expected, "{user:?}");
        }
    }

    #[test]
    fn kraftkit_line_keeps_its_text() {
        let user = "nginx netdev.ip=10.0.0.2/24:10.0.0.1 vfs.fstab=[ \"initrd0:/:extract::ramfs=1:\" ] -- -c /n.conf ";
        let line = compose(user, &["virtio_mmio.device=4K@0xd0000000:5".into()], 4096).unwrap();
        let expected = user.replace(" -- ", " virtio_mmio.device=4K@0xd0000000:5 -- ");
        assert_eq!(line.to_str().unwrap(), expected);
        assert_eq!(compose(user, &[], 4096).unwrap().to_str().unwrap(), user);
    }

    #[test]
    fn unprintable_byte_is_rejected_with_position() {
        let error = |user: &str| compose(user, &[], 100).unwrap_err();
        assert_eq!(error("ab\tc"), Error::Byte { byte: 9, position: 2 });
        assert_eq!(error("a\0"), Error::Byte { byte: 0, position: 1 });
        assert_eq!(
            error("\u{e9}"),
            Error::Byte {
                byte: 0xc3,
                position: 0
            }
        );
        assert_eq!(
            error("abc\x7f"),
            Error::Byte {
                byte: 0x7f,
                position: 3
            }
        );
    }

    #[test]
    fn capacity_includes_nul() {
        let devices = ["dev".to_owned()];
        assert_eq!(compose("1234", &devices, 9).unwrap().as_bytes_with_nul().len(), 9);
        let error = compose("1234", &devices, 8).unwrap_err();
        assert_eq!(
            error,
            Error::TooLong {
                length: 8,
                added: 4,
                limit: 7
            }
        );
        assert!(compose("", &[], 1).is_ok());
        assert!(compose("", &[], 0).is_err());
    }

    proptest! {
        #[test]
        fn user_text_is_preserved(user in "[ a\"'\\\\-]{0,24}") {
            let line = compose(&user, &["DEVICE".into()], 100).unwrap().into_string().unwrap();
            let (before, after) = line.split_once("DEVICE").unwrap();
            let trimmed = after.strip_prefix(' ').unwrap_or(after);
            let stripped = before.strip_suffix(' ').unwrap_or(before);
            let possible = [[before, trimmed].concat(), [stripped, trimmed].concat()];
            prop_assert!(possible.contains(&user));
            let untouched = compose(&user, &[], 100).unwrap();
            prop_assert_eq!(untouched.to_str().unwrap(), user);
        }
    }
}
