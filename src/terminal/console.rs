//! This process's stdin and stdout as the guest's serial console.

use std::io;
use std::os::fd::AsFd;

use devices::serial::{SerialOutput, output};
use vmm::vm::{self, Console, InputAction};

use super::escape::{self, EscapeAction, EscapeFilter};
use super::{InputKind, Terminal};
use crate::logging::print;

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// stdin or stdout cannot be duplicated.
    #[error("cannot duplicate {file}")]
    Duplicate {
        /// Which one.
        file: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// stdout cannot take the guest's output.
    #[error("cannot use stdout for the guest's output")]
    Output(#[source] output::Error),
    /// The terminal could not be put into raw mode.
    #[error("cannot use this terminal")]
    Terminal(#[source] super::Error),
}

/// Connects the guest to stdin and stdout. A terminal is in raw mode as long as the console is there.
///
/// # Errors
/// [`Error`]
pub fn open() -> Result<Console, Error> {
    let duplicate = |file| move |source| Error::Duplicate { file, source };
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let output = SerialOutput::new(stdout.map_err(duplicate("stdout"))?).map_err(Error::Output)?;
    let stdin = io::stdin();
    let source = InputKind::of(stdin.as_fd());
    let input = (source != InputKind::Background).then(|| stdin.as_fd().try_clone_to_owned());
    let console = Console {
        output,
        input: input.transpose().map_err(duplicate("stdin"))?,
        filter: None,
        guard: None,
    };
    if source != InputKind::Terminal {
        return Ok(console);
    }
    let terminal = Terminal::enter(stdin.as_fd()).map_err(Error::Terminal)?;
    Ok(Console {
        filter: Some(Box::new(Keys::default())),
        guard: Some(Box::new(terminal)),
        ..console
    })
}

/// The escape keys, as the event loop asks for them.
#[derive(Default)]
struct Keys(EscapeFilter);

impl vm::InputFilter for Keys {
    fn filter(&mut self, input: &[u8], guest: &mut Vec<u8>) -> InputAction {
        // A byte at a time, so that of several keys in one read each does what it does.
        for byte in input {
            match self.0.feed(&[*byte], guest) {
                None => {}
                Some(EscapeAction::Quit) => return InputAction::End,
                Some(EscapeAction::Help) => print(escape::HELP),
            }
        }
        InputAction::Continue
    }
}
