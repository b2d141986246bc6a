//! Channel, cancellation and claim.

use std::time::Duration;

use interleavings::cancellation::Cancellation;
use interleavings::channel::{Receiver, SendError, channel};
use interleavings::claim::Claim;
use interleavings::sync::Arc;
use loom::thread;

use crate::check;

/// Receives two messages and the end of the sender by `receive`.
fn receive_all(receive: impl Fn(&Receiver<u32>) -> Option<u32> + Copy + Send + Sync + 'static) {
    check(move || {
        let (sender, receiver) = channel();
        let thread = thread::spawn(move || {
            for number in [1, 2] {
                sender.send(number).unwrap();
            }
        });
        let received = [(); 3].map(|()| receive(&receiver));
        assert_eq!(received, [Some(1), Some(2), None]);
        thread.join().unwrap();
    });
}

#[test]
fn messages_and_end_of_sender_arrive() {
    receive_all(Receiver::receive);
}

#[test]
fn messages_arrive_within_timeout() {
    receive_all(|receiver| receiver.receive_within(Duration::ZERO).ok());
}

#[test]
fn messages_arrive_soon() {
    receive_all(Receiver::receive_soon);
}

#[test]
fn message_to_ended_receiver_is_dropped() {
    check(|| {
        let (sender, receiver) = channel();
        let (inner, replies) = channel::<u32>();
        let thread = thread::spawn(move || drop(receiver));
        let sent = sender.send(inner);
        assert!(matches!(sent, Ok(()) | Err(SendError::Disconnected)));
        // The sender in the message is dropped in any case.
        assert_eq!(replies.receive(), None);
        thread.join().unwrap();
    });
}

#[test]
fn operation_is_cancelled_or_committed() {
    check(|| {
        let state = Arc::new(Cancellation::default());
        let operation = state.clone();
        let thread = thread::spawn(move || operation.commit().is_ok());
        let is_cancelled = state.cancel();
        let is_committed = thread.join().unwrap();
        assert!(is_cancelled != is_committed);
        assert_eq!(state.is_committed(), is_committed);
    });
}

#[test]
fn cancelled_operation_leaves_no_file_unawaited() {
    check(|| {
        let state = Arc::new(Cancellation::default());
        let operation = state.clone();
        let thread = thread::spawn(move || {
            operation.set_must_clean_up();
            // The operation creates a file if it may go on.
            operation.spend(1).is_ok()
        });
        assert!(state.cancel());
        let is_awaited = state.must_clean_up();
        let has_file = thread.join().unwrap();
        assert!(is_awaited || !has_file);
    });
}

#[test]
fn job_is_claimed_or_cancelled() {
    check(|| {
        let claim = Arc::new(Claim::default());
        let job = claim.clone();
        let thread = thread::spawn(move || {
            job.report_progress();
            job.take()
        });
        let is_cancelled = claim.cancel();
        assert!(thread.join().unwrap() != is_cancelled);
        assert_eq!((claim.is_cancelled(), claim.progress()), (is_cancelled, 1));
    });
}
