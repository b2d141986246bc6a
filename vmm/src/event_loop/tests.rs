//! Tests of the event loop without a VM.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use scratch::Temporary;

use super::{Error, run};
use crate::control::{Control, OperationResult, Service};
use crate::timeline::Timeline;

/// A service whose descriptor cannot be watched.
struct Unwatchable(File);

impl Service for Unwatchable {
    fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn ready(&mut self, _: &mut Control) {}

    fn finish_operation(&mut self, _: &mut Control, _: OperationResult) {}
}

#[test]
fn failed_event_loop_waits_for_committed_operation() {
    let timeline = Arc::new(Timeline::new(Instant::now(), true));
    let mut control = Control::new(Box::new(|| unreachable!("nothing is started")), timeline);
    let (committed, commits) = mpsc::channel();
    let (done, end) = mpsc::channel();
    let begun = control.begin(move |cancellation| {
        cancellation.commit().unwrap();
        committed.send(()).unwrap();
        // Longer than the wait for an operation that has not committed.
        std::thread::sleep(std::time::Duration::from_millis(300));
        done.send(()).unwrap();
        |_: &mut Control| Ok(())
    });
    begun.unwrap();
    scratch::receive(&commits);
    // epoll_ctl(2) rejects regular files.
    let file = Temporary::with(&[0]);
    let mut service = Unwatchable(File::open(file.path()).unwrap());
    let ended = run(&mut control, Some(&mut service), &[], None);
    assert!(matches!(ended, Err(Error::Events(_))), "{ended:?}");
    assert!(!control.is_busy());
    end.try_recv().unwrap();
}
