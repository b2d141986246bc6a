//! Progress of reading layers, on stderr.

use std::time::{Duration, Instant};

use crate::logging::print_message;

/// Time of reading without a message.
const QUIET: Duration = Duration::from_secs(1);
/// Time between two messages.
const INTERVAL: Duration = Duration::from_secs(2);

/// Progress of reading layers.
pub struct Progress {
    image: String,
    /// Time of the next message.
    next: Instant,
    layer: u64,
}

impl Progress {
    /// Starts the measurement for `image`.
    pub fn start(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            next: Instant::now() + QUIET,
            layer: 0,
        }
    }

    /// Begins a layer of `size` bytes.
    pub fn begin(&mut self, size: u64) {
        self.layer = size;
    }

    /// Prints a message if it is due. `done` bytes of the layer are read.
    pub fn report(&mut self, done: u64) {
        if let Some(message) = self.message(Instant::now(), done) {
            print_message(&message);
        }
    }

    /// Returns the message that is due at the time `now`.
    fn message(&mut self, now: Instant, done: u64) -> Option<String> {
        if now < self.next {
            return None;
        }
        self.next = now + INTERVAL;
        let (done, size) = (done >> 20, self.layer.div_ceil(1 << 20));
        Some(format!("reading {}: {done} of {size} MiB of a layer", self.image))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Progress;

    #[test]
    fn message_is_due_after_a_second_and_each_two_seconds() {
        let start = Instant::now();
        let mut progress = Progress::start("oci:app");
        progress.begin(900 << 20);
        let mut due = |seconds| progress.message(start + Duration::from_secs(seconds), 300 << 20);
        assert_eq!(due(0), None);
        assert_eq!(
            due(2).as_deref(),
            Some("reading oci:app: 300 of 900 MiB of a layer")
        );
        assert_eq!(due(3), None);
        assert!(due(4).is_some());
    }
}
