//! Channel of messages between threads.
//!
//! That of the standard library has three implementations, which the compiler instantiates for each type of message: some 8 KB of
//! machine code each. This one has a lock, which is free at most sends, and calls the kernel only for a receiver that waits.

use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::thread;
use std::time::{Duration, Instant};

use devices::sync::{Arc, Condvar, Mutex, MutexGuard, lock, wait, wait_within};

/// Reason why no message was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveError {
    /// There is none yet.
    Empty,
    /// There is none, and no sender is left.
    Disconnected,
}

/// Reason why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// As many messages as allowed wait for the receiver.
    Full,
    /// The receiver was dropped.
    Disconnected,
}

/// Returns the ends of a new channel. The channel allocates memory for messages when it gets the first one.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            messages: VecDeque::new(),
            is_waiting: false,
            has_sender: true,
            has_receiver: true,
        }),
        changed: Condvar::new(),
    });
    (Sender(shared.clone()), Receiver(shared, PhantomData))
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// Notified for a receiver that [waits](State::is_waiting).
    changed: Condvar,
}

struct State<T> {
    messages: VecDeque<T>,
    /// The receiver waits for a change.
    is_waiting: bool,
    has_sender: bool,
    has_receiver: bool,
}

impl<T> State<T> {
    fn take(&mut self) -> Result<T, ReceiveError> {
        match self.messages.pop_front() {
            Some(message) => Ok(message),
            None if self.has_sender => Err(ReceiveError::Empty),
            None => Err(ReceiveError::Disconnected),
        }
    }
}

impl<T> Shared<T> {
    fn notify(&self, state: MutexGuard<'_, State<T>>) {
        let is_waiting = state.is_waiting;
        drop(state);
        if is_waiting {
            self.changed.notify_one();
        }
    }
}

/// Sending end of a channel. Threads share it by reference.
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Sends `message`, without a wait.
    ///
    /// # Errors
    /// [`SendError::Disconnected`]; the message is dropped.
    pub fn send(&self, message: T) -> Result<(), SendError> {
        self.send_within(usize::MAX, message)
    }

    /// As [`send`](Self::send), if fewer than `capacity` messages wait for the receiver.
    ///
    /// # Errors
    /// [`SendError`]; the message is dropped.
    pub fn send_within(&self, capacity: usize, message: T) -> Result<(), SendError> {
        let mut state = lock(&self.0.state);
        if !state.has_receiver {
            return Err(SendError::Disconnected);
        }
        if state.messages.len() >= capacity {
            return Err(SendError::Full);
        }
        state.messages.push_back(message);
        self.0.notify(state);
        Ok(())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.has_sender = false;
        self.0.notify(state);
    }
}

/// Maximum duration of [`poll`]. None for loom, which measures no time: a poll is one attempt there.
const POLL_TIMEOUT: Duration = Duration::from_millis(if cfg!(loom) { 0 } else { 1 });

/// Calls `attempt` until it returns a value, and yields the processor after each other call. Returns `None` after a millisecond.
pub fn poll<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let value = attempt();
        if value.is_some() || start.elapsed() >= POLL_TIMEOUT {
            return value;
        }
        thread::yield_now();
    }
}

/// Receiving end of a channel, for one thread at a time. Its drop drops the messages.
pub struct Receiver<T>(Arc<Shared<T>>, PhantomData<Cell<()>>);

impl<T> Receiver<T> {
    /// Receives a message, without a wait.
    ///
    /// # Errors
    /// [`ReceiveError`]
    pub fn try_receive(&self) -> Result<T, ReceiveError> {
        lock(&self.0.state).take()
    }

    /// Returns true if a message waits.
    pub fn has_message(&self) -> bool {
        !lock(&self.0.state).messages.is_empty()
    }

    /// As [`receive`](Self::receive), for a message that follows soon. The thread polls first: its wake would take some 40 us where the
    /// host is a virtual machine.
    pub fn receive_soon(&self) -> Option<T> {
        poll(|| match self.try_receive() {
            Ok(message) => Some(Some(message)),
            Err(ReceiveError::Disconnected) => Some(None),
            Err(ReceiveError::Empty) => None,
        })
        .unwrap_or_else(|| self.receive())
    }

    /// Waits for a message, without a limit. Returns `None` if no sender is left.
    pub fn receive(&self) -> Option<T> {
        let mut state = lock(&self.0.state);
        loop {
            match state.take() {
                Ok(message) => return Some(message),
                Err(ReceiveError::Disconnected) => return None,
                Err(ReceiveError::Empty) => {}
            }
            state.is_waiting = true;
            state = wait(&self.0.changed, state);
            state.is_waiting = false;
        }
    }

    /// Waits for a message, at most for `timeout`.
    ///
    /// # Errors
    /// [`ReceiveError`]
    pub fn receive_within(&self, timeout: Duration) -> Result<T, ReceiveError> {
        let mut state = lock(&self.0.state);
        state.is_waiting = true;
        let is_empty = |state: &mut State<T>| state.messages.is_empty() && state.has_sender;
        let (mut state, _) = wait_within(&self.0.changed, state, timeout, is_empty);
        state.is_waiting = false;
        state.take()
    }

    /// Returns the messages that have arrived, without a wait.
    pub fn try_iter(&self) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| self.try_receive().ok())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.has_receiver = false;
        let messages = std::mem::take(&mut state.messages);
        // Messages may be senders of other channels, whose drop must not run under this lock.
        drop(state);
        drop(messages);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::{ReceiveError, SendError, channel};

    #[test]
    fn messages_arrive_in_order() {
        let (sender, receiver) = channel();
        for number in 0..3 {
            sender.send(number).unwrap();
        }
        assert_eq!(receiver.try_receive(), Ok(0));
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(receiver.try_receive(), Err(ReceiveError::Empty));
        assert_eq!(receiver.receive_within(Duration::ZERO), Err(ReceiveError::Empty));
    }

    #[test]
    fn last_message_arrives_before_disconnect() {
        let (sender, receiver) = channel();
        sender.send(7).unwrap();
        drop(sender);
        assert_eq!(receiver.receive_within(scratch::TIMEOUT), Ok(7));
        assert_eq!(receiver.try_receive(), Err(ReceiveError::Disconnected));
        assert_eq!(receiver.receive(), None);
    }

    #[test]
    fn full_channel_rejects_message() {
        let (sender, receiver) = channel();
        sender.send_within(1, 1).unwrap();
        assert_eq!(sender.send_within(1, 2), Err(SendError::Full));
        assert_eq!(receiver.receive(), Some(1));
        sender.send_within(1, 3).unwrap();
    }

    #[test]
    fn dropped_receiver_drops_messages() {
        let (sender, receiver) = channel();
        let (inner, replies) = channel::<()>();
        sender.send(inner).unwrap();
        drop(receiver);
        assert_eq!(replies.try_receive(), Err(ReceiveError::Disconnected));
        assert_eq!(sender.send(channel().0), Err(SendError::Disconnected));
    }

    #[test]
    fn waiting_receiver_gets_message_and_disconnect() {
        for limited in [true, false] {
            let (sender, receiver) = channel();
            let (reply, replies) = channel();
            let thread = thread::spawn(move || {
                let receive = || match limited {
                    true => receiver.receive_within(scratch::TIMEOUT).ok(),
                    false => receiver.receive(),
                };
                while let Some(number) = receive() {
                    reply.send(number).unwrap();
                }
            });
            for number in 0..100 {
                sender.send(number).unwrap();
                assert_eq!(replies.receive_within(scratch::TIMEOUT), Ok(number));
            }
            drop(sender);
            scratch::join(thread);
            assert_eq!(replies.try_receive(), Err(ReceiveError::Disconnected));
        }
    }
}
