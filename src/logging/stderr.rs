//! Writes to stderr.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use devices::serial::Sink;

/// How long a stderr that nobody reads may hold mayfly up. It is often the same pipe as stdout.
const PATIENCE: Duration = Duration::from_millis(100);

/// Writes `text` to stderr as it is. A stderr that is closed or not read is no reason to end or to wait.
pub fn put(text: &str) {
    let Ok(mut sink) = io::stderr().as_fd().try_clone_to_owned().and_then(Sink::new) else {
        return;
    };
    let mut rest = text.as_bytes();
    let start = Instant::now();
    while !rest.is_empty() {
        match sink.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = PATIENCE.saturating_sub(start.elapsed());
                if left.is_zero() || sink.wait(left).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
