//! The escape keys, which control mayfly and do not reach the guest.

/// Text to print for [`EscapeAction::Help`]. Lines end with a carriage return, for a terminal in raw mode.
pub const HELP: &str = "\r\n\
    Ctrl-A x       end the virtual machine\r\n\
    Ctrl-A h       show this help\r\n\
    Ctrl-A Ctrl-A  send one Ctrl-A to the guest\r\n";

const ESCAPE: u8 = 0x01;

/// Action of an escape key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapeAction {
    /// Print [`HELP`].
    Help,
    /// End the virtual machine.
    Quit,
}

/// Separates escape keys from the guest's input. For input from a terminal only: in a pipe or a file Ctrl-A is data.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    /// The last byte was Ctrl-A; the next one decides its meaning.
    pending: bool,
}

impl EscapeFilter {
    /// Appends the guest's part of `input` to `guest`, at most one byte more than `input` has: Ctrl-A and a byte that is no escape
    /// key both go to the guest. Returns the last action.
    ///
    /// [`EscapeAction::Quit`] discards the rest of `input` and any earlier action.
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

    /// Feeds `input` at once and byte by byte, checks that the results are equal, and returns them.
    fn feed(input: &[u8]) -> (Vec<u8>, Option<EscapeAction>) {
        let mut at_once = Vec::new();
        let action = EscapeFilter::default().feed(input, &mut at_once);

        let (mut single, mut last) = (Vec::new(), None);
        let mut escape = EscapeFilter::default();
        for byte in input.chunks(1) {
            if last != Some(EscapeAction::Quit) {
                last = escape.feed(byte, &mut single).or(last);
            }
        }
        assert_eq!((&at_once, action), (&single, last));
        (at_once, action)
    }

    #[test]
    fn ordinary_keys_reach_the_guest() {
        let all: Vec<u8> = (0..=255).filter(|byte| *byte != 1).collect();
        assert_eq!(feed(&all), (all.clone(), None));
    }

    #[test]
    fn escape_key_waits_for_next_key() {
        assert_eq!(feed(b"a\x01"), (b"a".to_vec(), None));
    }

    #[test]
    fn escape_keys_act_or_reach_the_guest() {
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
