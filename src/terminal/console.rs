//! Stdin and stdout as the guest's serial console.

use std::io;
use std::os::fd::AsFd;

use devices::serial::{SerialOutput, output};
use vmm::vm::{self, Console, InputAction};

use super::escape::{EscapeAction, EscapeFilter};
use super::{InputKind, Terminal};
use crate::logging::print;

/// Failure to open the console.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// stdin or stdout cannot be duplicated.
    #[error("cannot duplicate {file}")]
    Duplicate {
        /// Name of the file.
        file: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// stdout cannot be used.
    #[error("cannot write serial output to stdout")]
    Output(#[source] output::Error),
    /// The terminal cannot be set to raw mode.
    #[error("cannot use this terminal")]
    Terminal(#[source] super::Error),
}

/// Opens the console. A terminal on stdin is in raw mode until the console is dropped.
///
/// # Errors
/// [`Error`] if stdin or stdout cannot be used.
pub fn open() -> Result<Console, Error> {
    let duplicate = |file| move |source| Error::Duplicate { file, source };
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let output = SerialOutput::new(stdout.map_err(duplicate("stdout"))?).map_err(Error::Output)?;
    let stdin = io::stdin();
    let kind = InputKind::of(stdin.as_fd());
    let input = (kind != InputKind::Background).then(|| stdin.as_fd().try_clone_to_owned());
    let console = Console {
        output,
        input: input.transpose().map_err(duplicate("stdin"))?,
        filter: None,
        guard: None,
    };
    if kind != InputKind::Terminal {
        return Ok(console);
    }
    let terminal = Terminal::enter(stdin.as_fd()).map_err(Error::Terminal)?;
    Ok(Console {
        filter: Some(Box::new(EscapeKeys(EscapeFilter::new(QUIT)))),
        guard: Some(Box::new(terminal)),
        ..console
    })
}

/// Key after Ctrl-A that ends the VM.
const QUIT: u8 = b'x';

/// Text for [`EscapeAction::Help`]. Lines end with a carriage return, for a terminal in raw mode.
const KEYS: &str = "\r\n\
    Ctrl-A x       end the virtual machine\r\n\
    Ctrl-A h       show this help\r\n\
    Ctrl-A Ctrl-A  send one Ctrl-A to the guest\r\n";

/// [`EscapeFilter`] as the input filter of the event loop.
struct EscapeKeys(EscapeFilter);

impl vm::InputFilter for EscapeKeys {
    fn filter(&mut self, input: &[u8], guest: &mut Vec<u8>) -> InputAction {
        // Byte by byte: one read may hold several escape keys, and `feed` returns the last action only.
        for byte in input {
            match self.0.feed(&[*byte], guest) {
                None => {}
                Some(EscapeAction::Quit) => return InputAction::End,
                Some(EscapeAction::Help) => print(KEYS),
            }
        }
        InputAction::Continue
    }
}
