//! Order of the wakes: at most some at once, the others wait in the order of their requests.

use std::collections::{BTreeSet, VecDeque};

use super::registry::Key;

/// Wakes that wait, and those in progress.
#[derive(Debug)]
pub struct WakeQueue {
    waiting: VecDeque<Key>,
    active: BTreeSet<Key>,
    max: usize,
}

impl WakeQueue {
    /// Creates a queue with at most `max` wakes at once.
    pub fn new(max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            active: BTreeSet::new(),
            max,
        }
    }

    /// Adds the wake of an instance at the end.
    pub fn push(&mut self, key: Key) {
        self.waiting.push_back(key);
    }

    /// Returns the next wake, unless the maximum is in progress. It is in progress from then on.
    pub fn begin(&mut self) -> Option<Key> {
        if self.active.len() >= self.max {
            return None;
        }
        let key = self.waiting.pop_front()?;
        self.active.insert(key);
        Some(key)
    }

    /// Returns a wake that cannot begin yet to the front.
    pub fn put_back(&mut self, key: Key) {
        self.waiting.push_front(key);
        self.end(key);
    }

    /// Notes the end of a wake, if it is in progress.
    pub fn end(&mut self, key: Key) {
        self.active.remove(&key);
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
        self.active.len()
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
        queue.end(key(0));
        queue.end(key(0));
        assert_eq!(queue.begin(), Some(key(3)));
        queue.put_back(key(3));
        assert_eq!((queue.waiting(), queue.active()), (2, 1));
        assert_eq!((queue.begin(), queue.begin()), (Some(key(3)), None));
        queue.end(key(1));
        assert_eq!((queue.begin(), queue.begin()), (Some(key(4)), None));
        queue.end(key(3));
        queue.end(key(4));
        assert_eq!((queue.begin(), queue.active()), (None, 0));
    }
}
