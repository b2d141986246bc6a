//! What a process says on its standard error, kept for when it ends.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// The most bytes that are looked at.
const MAX_BYTES: usize = 4096;
/// The most characters of the line that is told.
const LINE: usize = 200;
/// What passt says in any case.
const NOTICES: [&str; 2] = ["Don't run as root", "Failed to send"];

/// The reading end of what is a process's standard error. Clones tell the same.
///
/// Nobody reads before the process ends. It does not wait for that: what has no room is lost, which never is
/// what came first.
#[derive(Clone, Debug)]
pub(super) struct StderrTail(Arc<Mutex<Words>>);

#[derive(Debug)]
struct Words {
    socket: UnixStream,
    text: Vec<u8>,
}

impl StderrTail {
    /// A pair of sockets, which std can make not to block as it cannot a pipe; the other is for the process.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let words = Words {
            socket: ours,
            text: Vec::new(),
        };
        Ok((Self(Arc::new(Mutex::new(words))), theirs.into()))
    }

    /// The first line that says something, of what was said up to now.
    pub(super) fn first_line(&self) -> Option<String> {
        let mut words = lock(&self.0);
        let Words { socket, text } = &mut *words;
        let mut part = [0; MAX_BYTES];
        while text.len() < MAX_BYTES {
            match socket.read(&mut part[text.len()..]) {
                Ok(count) if count > 0 => {
                    let start = text.len();
                    text.extend(&part[start..start + count]);
                }
                // It has said all, or is still there and silent.
                _ => break,
            }
        }
        first_line(&String::from_utf8_lossy(text))
    }
}

fn first_line(text: &str) -> Option<String> {
    let says = |line: &&str| !line.is_empty() && !NOTICES.iter().any(|notice| line.starts_with(notice));
    let line = text.lines().map(str::trim).find(says)?;
    // Neither colours nor anything else for a terminal gets into the log.
    let visible = line.chars().filter(|character| !character.is_control());
    Some(visible.take(LINE).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Write};

    use super::{LINE, StderrTail};

    #[test]
    fn the_first_line_that_says_something_is_told_to_all() {
        let (words, theirs) = StderrTail::pair().unwrap();
        assert_eq!(words.first_line(), None);
        let mut theirs = File::from(theirs);
        let said = "Don't run as root. Changing to nobody...\n\n \x1b[31mno such option\nusage\n";
        theirs.write_all(said.as_bytes()).unwrap();
        drop(theirs);
        let expected = Some("[31mno such option".to_owned());
        assert_eq!(words.clone().first_line(), expected);
        assert_eq!(words.first_line(), expected);
    }

    #[test]
    fn who_says_too_much_is_neither_stopped_nor_kept() {
        let (words, theirs) = StderrTail::pair().unwrap();
        let mut theirs = File::from(theirs);
        let full = loop {
            if let Err(error) = theirs.write(&[b'x'; 1000]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        assert_eq!(words.first_line().unwrap(), "x".repeat(LINE));
    }
}
