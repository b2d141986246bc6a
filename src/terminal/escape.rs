//! The keys by which a user at a terminal talks to mayfly instead of the guest.

/// What the escape keys are, to be written to standard error on [`EscapeAction::Help`]. Lines end for a terminal in raw mode.
pub const HELP: &str = "\r\n\
    Ctrl-A x       ends the virtual machine\r\n\
    Ctrl-A h       shows this help\r\n\
    Ctrl-A Ctrl-A  sends one Ctrl-A to the guest\r\n";

const ESCAPE: u8 = 0x01;

/// What the user wants of mayfly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapeAction {
    /// Write [`HELP`].
    Help,
    /// End the virtual machine.
    Quit,
}

/// Tells keys for mayfly from keys for the guest. Only for input from a terminal: in a pipe or a file Ctrl-A is data.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    /// The last byte was a Ctrl-A that is not decided yet.
    pending: bool,
}

impl EscapeFilter {
    /// Appends what of `input` is meant for the guest to `guest`, at most one byte more than `input` has: a Ctrl-A that
    /// is followed by nothing of meaning here goes to the guest with what follows it.
    ///
    /// What comes after the keys of [`EscapeAction::Quit`] is thrown away, and a call for help before it with it.
    pub fn feed(&mut self, input: &[u8], guest: &mut Vec<u8>) -> Option<EscapeAction> {
        let mut action = None;
        for &byte in input {
            if !std::mem::take(&mut self.pending) {
                self.pending = byte == ESCAPE;
                if !self.pending {
                    guest.push(byte);
                }
                continue;
            }
            match byte {
                b'x' => return Some(EscapeAction::Quit),
                b'h' => action = Some(EscapeAction::Help),
                ESCAPE => guest.push(ESCAPE),
                other => guest.extend([ESCAPE, other]),
            }
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use super::{EscapeAction, EscapeFilter};

    /// Feeds `input` as a whole and byte by byte, which must come to the same, and returns what it came to.
    fn feed(input: &[u8]) -> (Vec<u8>, Option<EscapeAction>) {
        let mut whole = Vec::new();
        let action = EscapeFilter::default().feed(input, &mut whole);

        let (mut pieces, mut last) = (Vec::new(), None);
        let mut escape = EscapeFilter::default();
        for piece in input.chunks(1) {
            if last != Some(EscapeAction::Quit) {
                last = escape.feed(piece, &mut pieces).or(last);
            }
        }
        assert_eq!((&whole, action), (&pieces, last));
        (whole, action)
    }

    #[test]
    fn ordinary_keys_go_to_the_guest() {
        let all: Vec<u8> = (0..=255).filter(|byte| *byte != 1).collect();
        assert_eq!(feed(&all), (all.clone(), None));
    }

    #[test]
    fn the_escape_key_alone_waits_for_the_next() {
        assert_eq!(feed(b"a\x01"), (b"a".to_vec(), None));
    }

    #[test]
    fn escape_keys() {
        assert_eq!(feed(b"a\x01xb"), (b"a".to_vec(), Some(EscapeAction::Quit)));
        assert_eq!(feed(b"a\x01hb"), (b"ab".to_vec(), Some(EscapeAction::Help)));
        assert_eq!(feed(b"a\x01hb\x01x"), (b"ab".to_vec(), Some(EscapeAction::Quit)));
        assert_eq!(feed(b"a\x01\x01x"), (b"a\x01x".to_vec(), None));
        assert_eq!(feed(b"a\x01cx"), (b"a\x01cx".to_vec(), None));
        assert_eq!(
            feed(b"\x01\x01\x01x"),
            (b"\x01".to_vec(), Some(EscapeAction::Quit))
        );
    }
}
