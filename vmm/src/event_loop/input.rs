//! Input of the console on its way to the guest's serial port.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::vm::{ConsoleInput, InputAction, InputFilter};

/// Result of one read of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Bytes were read; their effect on the VM.
    Bytes(InputAction),
    /// Nothing is available now.
    Nothing,
    /// End of file, or an error.
    Closed,
}

/// Input that was read and has no room in the serial port yet, and the file that it comes from.
pub struct Input {
    file: OwnedFd,
    filter: Option<Box<dyn InputFilter + Send>>,
    pending: VecDeque<u8>,
    /// No read with RWF_NOWAIT has failed yet for lack of support.
    nowait: bool,
}

/// Bytes in one read.
const CHUNK_SIZE: usize = 1024;
/// Maximum number of pending bytes of input that is read only to find escape keys.
const MAX_PENDING: usize = 4096;

impl Input {
    pub fn new(input: ConsoleInput) -> Self {
        Self {
            file: input.file,
            filter: input.filter,
            pending: VecDeque::new(),
            nowait: true,
        }
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Returns true if the input must be read now. Input with a filter always is, because the escape keys of a terminal must work at
    /// any time; other input waits in its file until the guest has taken the pending bytes and is not `held`.
    pub(super) fn needs_read(&self, held: bool) -> bool {
        self.filter.is_some() || (!held && self.pending.is_empty())
    }

    /// Reads once, after epoll has reported the file readable. If another process that reads the same file was faster, the read
    /// returns [`Read::Nothing`]. It blocks instead for terminals and FIFOs, and for pipes before Linux 6.4.
    pub(super) fn read(&mut self) -> Read {
        let mut chunk = [0; CHUNK_SIZE];
        let read = match self.nowait {
            true => self.read_now(&mut chunk),
            false => self.read_into(&mut chunk),
        };
        self.handle_read(&chunk, read)
    }

    /// Reads a regular file once, which may wait for the disk.
    pub(super) fn read_regular(&mut self) -> Read {
        let mut chunk = [0; CHUNK_SIZE];
        let read = self.read_into(&mut chunk);
        self.handle_read(&chunk, read)
    }

    fn handle_read(&mut self, chunk: &[u8], read: io::Result<usize>) -> Read {
        match read {
            Ok(0) => Read::Closed,
            Ok(count) => Read::Bytes(self.push(&chunk[..count])),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Read::Nothing,
                _ => Read::Closed,
            },
        }
    }

    /// Reads without blocking. O_NONBLOCK would work for every file, but also affect other processes with the same open file.
    fn read_now(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let iovec = libc::iovec {
            iov_base: chunk.as_mut_ptr().cast(),
            iov_len: chunk.len(),
        };
        // Offset -1 stands for the file position: a pipe has no other.
        // SAFETY: `iovec` describes `chunk`, which is valid for writes.
        let count =
            unsafe { libc::preadv2(self.file.as_raw_fd(), &raw const iovec, 1, -1, libc::RWF_NOWAIT) };
        match usize::try_from(count).map_err(|_| io::Error::last_os_error()) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.nowait = false;
                self.read_into(chunk)
            }
            read => read,
        }
    }

    fn read_into(&self, chunk: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `chunk` is valid for writes of its length.
        let count = unsafe { libc::read(self.file.as_raw_fd(), chunk.as_mut_ptr().cast(), chunk.len()) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    fn push(&mut self, bytes: &[u8]) -> InputAction {
        let Some(filter) = &mut self.filter else {
            self.pending.extend(bytes);
            return InputAction::Continue;
        };
        let mut kept = Vec::with_capacity(bytes.len() + 1);
        let action = filter.filter(bytes, &mut kept);
        // Excess input is dropped, as a terminal drops it for a program that does not read.
        let room = MAX_PENDING.saturating_sub(self.pending.len());
        self.pending.extend(kept.iter().take(room));
        action
    }

    /// Passes the pending bytes to `enqueue`, which returns the number of bytes taken.
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

    use super::{ConsoleInput, Input, InputAction, InputFilter, MAX_PENDING, Read};

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

    fn input(file: File, filter: Option<Box<dyn InputFilter + Send>>) -> Input {
        let file = file.into();
        Input::new(ConsoleInput { file, filter })
    }

    #[test]
    fn pipe_is_read_when_guest_has_room() {
        let (reader, mut writer) = pipe();
        let mut input = input(reader, None);
        writer.write_all(b"abc").unwrap();
        assert_eq!(input.read(), Read::Bytes(InputAction::Continue));
        assert!(!input.needs_read(false));
        input.deliver(|bytes| {
            assert_eq!(bytes, b"abc");
            2
        });
        assert!(!input.needs_read(false));
        input.deliver(|bytes| {
            assert_eq!(bytes, b"c");
            1
        });
        assert!(input.needs_read(false));
        assert!(!input.needs_read(true));
        drop(writer);
        assert_eq!(input.read(), Read::Closed);
        input.deliver(|_| unreachable!("nothing is pending"));
    }

    #[test]
    fn emptied_pipe_does_not_block() {
        scratch::limited(read_emptied_pipe);
    }

    /// Blocks if a read blocks.
    fn read_emptied_pipe() {
        let (reader, mut writer) = pipe();
        let mut input = input(reader, None);
        writer.write_all(b"a").unwrap();
        assert_eq!(input.read(), Read::Bytes(InputAction::Continue));
        if input.nowait {
            assert_eq!(input.read(), Read::Nothing);
        } else {
            scratch::skip("reads of a pipe without blocking", "use Linux 6.4 or later");
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
    fn file_without_nowait_is_read() {
        let zero = File::open("/dev/zero").unwrap();
        let mut input = input(zero, None);
        input.nowait = false;
        assert_eq!(input.read(), Read::Bytes(InputAction::Continue));
        assert_eq!(input.read_regular(), Read::Bytes(InputAction::Continue));
    }

    #[test]
    fn filtered_input_is_always_read() {
        let (reader, mut writer) = pipe();
        let mut input = input(reader, Some(Box::new(UntilX)));
        for _ in 0..20 {
            writer.write_all(&[b'a'; 1000]).unwrap();
            assert_eq!(input.read(), Read::Bytes(InputAction::Continue));
            assert!(input.needs_read(false) && input.needs_read(true));
        }
        writer.write_all(b"bx").unwrap();
        assert_eq!(input.read(), Read::Bytes(InputAction::End));
        input.deliver(|bytes| {
            assert_eq!(bytes.len(), MAX_PENDING);
            bytes.len()
        });
    }
}
