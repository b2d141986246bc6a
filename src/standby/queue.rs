//! Order of the wakes: at most some at once, the others wait in the order of their requests.

use std::collections::VecDeque;

use super::registry::Key;

/// Wakes that wait, and the number of those in progress.
#[derive(Debug)]
pub struct WakeQueue {
    waiting: VecDeque<Key>,
    active: usize,
    max: usize,
}

impl WakeQueue {
    /// Creates a queue with at most `max` wakes at once.
    pub fn new(max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            active: 0,
            max,
        }
    }

    /// Adds the wake of an instance at the end.
    pub fn push(&mut self, key: Key) {
        self.waiting.push_back(key);
    }

    /// Returns the next wake, unless the maximum is in progress. It is in progress from then on.
    pub fn begin(&mut self) -> Option<Key> {
        if self.active >= self.max {
            return None;
        }
        let key = self.waiting.pop_front()?;
        self.active += 1;
        Some(key)
    }

    /// Returns a wake that cannot begin yet to the front.
    pub fn put_back(&mut self, key: Key) {
        self.waiting.push_front(key);
        self.end();
    }

    /// Notes the end of a wake in progress.
    pub fn end(&mut self) {
        self.active = self.active.saturating_sub(1);
    }

    /// Removes a wake that waits. Returns false if it does not wait.
    pub fn remove(&mut self, key: Key) -> bool {
        let index = self.waiting.iter().position(|waiting| *waiting == key);
        index.is_some_and(|index| self.waiting.remove(index).is_some())
    }

    /// Returns the number of wakes that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the number of wakes in progress.
    pub fn active(&self) -> usize {
        self.active
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, WakeQueue};

    fn key(index: u32) -> Key {
        Key { index, generation: 1 }
    }

    #[test]
    fn wakes_beyond_the_maximum_wait_in_order() {
        let mut queue = WakeQueue::new(2);
        for index in 0..5 {
            queue.push(key(index));
        }
        assert_eq!(
            (queue.begin(), queue.begin(), queue.begin()),
            (Some(key(0)), Some(key(1)), None)
        );
        assert!(queue.remove(key(2)) && !queue.remove(key(2)) && !queue.remove(key(0)));
        queue.end();
        assert_eq!(queue.begin(), Some(key(3)));
        queue.put_back(key(3));
        assert_eq!((queue.waiting(), queue.active()), (2, 1));
        assert_eq!((queue.begin(), queue.begin()), (Some(key(3)), None));
        queue.end();
        assert_eq!((queue.begin(), queue.begin()), (Some(key(4)), None));
        queue.end();
        queue.end();
        queue.end();
        assert_eq!((queue.begin(), queue.active()), (None, 0));
    }
}
