//! Models of threads that share data, each run in all orders of its memory accesses that loom distinguishes.
//!
//! Threads of a model wait without a limit: loom reports a wait that cannot end as a deadlock. A lost kick, message or notification is
//! one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "loom ends a thread that waits for ever")]

mod gate;
mod messages;
mod observers;
mod virtio;

use interleavings::sync::{Condvar, Mutex, lock, wait};

/// Maximum preemptions in an order. Without a limit, some models run for minutes.
const PREEMPTIONS: usize = 4;

/// Runs `model` in all orders.
fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

/// An event that stays set until a thread takes it: a pending signal, an eventfd or an interrupt.
#[derive(Default)]
struct Event {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn set(&self) {
        *lock(&self.is_set) = true;
        self.changed.notify_one();
    }

    /// Takes the event. Returns false if it is not set.
    fn take(&self) -> bool {
        std::mem::take(&mut *lock(&self.is_set))
    }

    /// Waits for the event and takes it.
    fn wait(&self) {
        let mut is_set = lock(&self.is_set);
        while !std::mem::take(&mut *is_set) {
            is_set = wait(&self.changed, is_set);
        }
    }
}
