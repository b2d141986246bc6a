//! Writes to stderr.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devices::serial::NonblockingWriter;

/// How long a stderr that nobody reads may hold mayfly up. It is often the same pipe as stdout.
const TIMEOUT: Duration = Duration::from_millis(100);

/// Writes `text` to stderr as it is. A stderr that is closed or not read is no reason to end or to wait.
pub fn print(text: &str) {
    if let Ok(file) = io::stderr().as_fd().try_clone_to_owned() {
        write(file, text, TIMEOUT);
    }
}

/// As [`print`], for what a guest or a client can have said again and again: once nobody has read it in time, none of it is
/// waited for until it is read again.
pub fn print_unless_blocked(text: &str) {
    static STUCK: AtomicBool = AtomicBool::new(false);
    if let Ok(file) = io::stderr().as_fd().try_clone_to_owned() {
        write_unless_stuck(file, text, &STUCK);
    }
}

fn write_unless_stuck(file: OwnedFd, text: &str, stuck: &AtomicBool) {
    let patience = if stuck.load(Ordering::Relaxed) {
        Duration::ZERO
    } else {
        TIMEOUT
    };
    stuck.store(!write(file, text, patience), Ordering::Relaxed);
}

/// Returns whether all of it was taken in time.
fn write(file: OwnedFd, text: &str, patience: Duration) -> bool {
    let Ok(mut sink) = NonblockingWriter::new(file) else {
        return false;
    };
    let mut rest = text.as_bytes();
    let start = Instant::now();
    while !rest.is_empty() {
        match sink.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = patience.saturating_sub(start.elapsed());
                if left.is_zero() || sink.wait(left).is_err() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Read};
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::{TIMEOUT, write_unless_stuck};

    #[test]
    fn a_reader_that_does_not_read_is_waited_for_once() {
        let (reader, writer) = io::pipe().unwrap();
        let mut reader = File::from(OwnedFd::from(reader));
        let stuck = AtomicBool::new(false);
        let put = |text: &str| write_unless_stuck(writer.try_clone().unwrap().into(), text, &stuck);
        // More than a pipe holds.
        put(&"x".repeat(4 << 20));
        assert!(stuck.load(Ordering::Relaxed));
        let start = Instant::now();
        (0..100).for_each(|_| put("again\n"));
        assert!(start.elapsed() < 10 * TIMEOUT, "{:?}", start.elapsed());
        // Somebody reads again.
        reader.read_exact(&mut [0; 16384]).unwrap();
        put("last\n");
        assert!(!stuck.load(Ordering::Relaxed));
    }
}
