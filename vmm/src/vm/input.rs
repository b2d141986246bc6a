//! From the host's input to the guest's serial port.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What becomes of the VM after some input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputAction {
    /// It goes on.
    Continue,
    /// The user wants it to end.
    End,
}

/// Sees input before the guest does, for example to find escape keys.
pub trait InputFilter {
    /// Takes `input` and appends what is meant for the guest to `out`.
    fn filter(&mut self, input: &[u8], out: &mut Vec<u8>) -> InputAction;
}

/// What one read of the input brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Bytes, and what becomes of the VM.
    Bytes(InputAction),
    /// There is nothing now.
    Nothing,
    /// There will never be anything again.
    Closed,
}

/// Input on its way to the guest: what was read and has not found room in the serial port yet.
pub struct Input {
    file: OwnedFd,
    filter: Option<Box<dyn InputFilter>>,
    pending: VecDeque<u8>,
    /// Whether the kernel may know how to read the file without waiting.
    nowait: bool,
}

/// As much is read at once, and as much waits at most when the input is read only to find escape keys.
const CHUNK_SIZE: usize = 1024;
const MAX_PENDING: usize = 4096;

impl Input {
    /// Input from `file`, of which `filter` sees all first.
    pub fn new(file: OwnedFd, filter: Option<Box<dyn InputFilter>>) -> Self {
        Self {
            file,
            filter,
            pending: VecDeque::new(),
            nowait: true,
        }
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether the input is to be read now. A terminal always is, because its escape keys must work whatever the guest
    /// does; other input waits in its pipe or file until the guest has taken what was read before, and is not `held`.
    pub(super) fn wants_more(&self, held: bool) -> bool {
        self.filter.is_some() || (!held && self.pending.is_empty())
    }

    /// Reads once. The caller knows that there was something to read; another process that reads the same pipe or socket may
    /// have been quicker. Terminals and FIFOs, and before Linux 6.4 pipes, are then waited for.
    pub(super) fn read(&mut self) -> Read {
        let mut piece = [0; CHUNK_SIZE];
        let read = match self.nowait {
            true => self.read_now(&mut piece),
            false => self.read_into(&mut piece),
        };
        self.taken(&piece, read)
    }

    /// Reads a regular file once, which may have to come from the disk.
    pub(super) fn read_regular(&mut self) -> Read {
        let mut piece = [0; CHUNK_SIZE];
        let read = self.read_into(&mut piece);
        self.taken(&piece, read)
    }

    fn taken(&mut self, piece: &[u8], read: io::Result<usize>) -> Read {
        match read {
            Ok(0) => Read::Closed,
            Ok(count) => Read::Bytes(self.take(&piece[..count])),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Read::Nothing,
                _ => Read::Closed,
            },
        }
    }

    /// O_NONBLOCK would do for all files, but everybody else who has the file from the same open would have it too.
    fn read_now(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let part = libc::iovec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: piece.len(),
        };
        // Minus one is the file's own position, which a pipe must be read at.
        // SAFETY: `part` is valid for writes of its length.
        let count = unsafe { libc::preadv2(self.file.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
        match usize::try_from(count).map_err(|_| io::Error::last_os_error()) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.nowait = false;
                self.read_into(piece)
            }
            read => read,
        }
    }

    fn read_into(&self, piece: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `piece` is valid for writes of its length.
        let count = unsafe { libc::read(self.file.as_raw_fd(), piece.as_mut_ptr().cast(), piece.len()) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    fn take(&mut self, bytes: &[u8]) -> InputAction {
        let Some(filter) = &mut self.filter else {
            self.pending.extend(bytes);
            return InputAction::Continue;
        };
        let mut kept = Vec::with_capacity(bytes.len() + 1);
        let verdict = filter.filter(bytes, &mut kept);
        // As a terminal drops what is typed ahead of a program that does not read.
        let room = MAX_PENDING.saturating_sub(self.pending.len());
        self.pending.extend(kept.iter().take(room));
        verdict
    }

    /// Offers what is pending to `enqueue`, which says how many bytes it took.
    pub(super) fn deliver(&mut self, enqueue: impl FnOnce(&[u8]) -> usize) {
        if !self.pending.is_empty() {
            let taken = enqueue(self.pending.make_contiguous());
            self.pending.drain(..taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::{Input, InputAction, InputFilter, MAX_PENDING, Read};

    struct UntilX;

    impl InputFilter for UntilX {
        fn filter(&mut self, input: &[u8], out: &mut Vec<u8>) -> InputAction {
            out.extend(input.iter().take_while(|byte| **byte != b'x'));
            if input.contains(&b'x') {
                InputAction::End
            } else {
                InputAction::Continue
            }
        }
    }

    fn pipe() -> (File, File) {
        let (reader, writer) = std::io::pipe().unwrap();
        let owned = |fd: std::os::fd::OwnedFd| File::from(fd);
        (owned(reader.into()), owned(writer.into()))
    }

    #[test]
    fn a_pipe_waits_until_the_guest_has_room() {
        let (reader, mut writer) = pipe();
        let mut input = Input::new(reader.into(), None);
        writer.write_all(b"abc").unwrap();
        assert_eq!(input.read(), Read::Bytes(InputAction::Continue));
        assert!(!input.wants_more(false));
        input.deliver(|bytes| {
            assert_eq!(bytes, b"abc");
            2
        });
        assert!(!input.wants_more(false));
        input.deliver(|bytes| {
            assert_eq!(bytes, b"c");
            1
        });
        assert!(input.wants_more(false));
        assert!(!input.wants_more(true));
        drop(writer);
        assert_eq!(input.read(), Read::Closed);
        input.deliver(|_| unreachable!("nothing is pending"));
    }

    /// Where the pipe would be waited for, this does not end.
    #[test]
    fn what_another_reader_has_taken_is_not_waited_for() {
        let (reader, mut writer) = pipe();
        let mut input = Input::new(reader.into(), None);
        writer.write_all(b"a").unwrap();
        assert_eq!(input.read(), Read::Bytes(InputAction::Continue));
        if input.nowait {
            assert_eq!(input.read(), Read::Nothing);
        } else {
            eprintln!("this kernel, before Linux 6.4, cannot read a pipe without waiting");
        }
        writer.write_all(b"b").unwrap();
        assert_eq!(input.read(), Read::Bytes(InputAction::Continue));
        input.deliver(|bytes| {
            assert_eq!(bytes, b"ab");
            2
        });
        drop(writer);
        assert_eq!(input.read(), Read::Closed);
    }

    #[test]
    fn a_file_that_the_kernel_knows_no_other_way_to_read_is_read() {
        let zero = File::open("/dev/zero").unwrap();
        let mut input = Input::new(zero.into(), None);
        input.nowait = false;
        assert_eq!(input.read(), Read::Bytes(InputAction::Continue));
        assert_eq!(input.read_regular(), Read::Bytes(InputAction::Continue));
    }

    #[test]
    fn a_terminal_is_read_whatever_the_guest_does() {
        let (reader, mut writer) = pipe();
        let mut input = Input::new(reader.into(), Some(Box::new(UntilX)));
        for _ in 0..20 {
            writer.write_all(&[b'a'; 1000]).unwrap();
            assert_eq!(input.read(), Read::Bytes(InputAction::Continue));
            assert!(input.wants_more(false) && input.wants_more(true));
        }
        writer.write_all(b"bx").unwrap();
        assert_eq!(input.read(), Read::Bytes(InputAction::End));
        input.deliver(|bytes| {
            assert_eq!(bytes.len(), MAX_PENDING);
            bytes.len()
        });
    }
}
