//! The escape keys, which control mayfly and do not reach the guest.

const ESCAPE: u8 = 0x01;

/// Action of an escape key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapeAction {
    /// List the keys.
    Help,
    /// End the connection between terminal and guest.
    Quit,
}

/// Separates escape keys from the guest's input. For input from a terminal only: in a pipe or a file Ctrl-A is data.
#[derive(Debug)]
pub struct EscapeFilter {
    /// Key after Ctrl-A for [`EscapeAction::Quit`].
    quit: u8,
    /// The last byte was Ctrl-A; the next one decides its meaning.
    pending: bool,
}

impl EscapeFilter {
    /// Creates a filter with the key after Ctrl-A for [`EscapeAction::Quit`].
    pub fn new(quit: u8) -> Self {
        Self { quit, pending: false }
    }

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
                quit if quit == self.quit => return Some(EscapeAction::Quit),
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
        let action = EscapeFilter::new(b'x').feed(input, &mut at_once);

        let (mut single, mut last) = (Vec::new(), None);
        let mut escape = EscapeFilter::new(b'x');
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
