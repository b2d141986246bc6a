use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use io_uring::IoUring;
use scratch::{Requirement, require};

use super::worker::{ALL, stuck};
use super::{
    Buffer, DISCARD, Fixture, GET_ID, IN, IOERR, NONE, OK, OUT, SECTORS, Scratch, pattern, poll, poll_of,
};
use crate::virtio::block::IoEngine;
use crate::virtio::block::disk::Error;
use crate::virtio::block::transfer::PIECE_SIZE;
use crate::virtio::device::VirtioDevice;

/// Replaces the descriptor of the io_uring by `other`. The queues in memory stay. Returns the replaced descriptor.
pub(super) fn replace_uring(fixture: &Fixture, other: &impl AsRawFd) -> OwnedFd {
    let ring = fixture.block.uring_descriptor().unwrap();
    // SAFETY: the device keeps the descriptor open during the call.
    let replaced = unsafe { BorrowedFd::borrow_raw(ring) };
    let replaced = replaced.try_clone_to_owned().unwrap();
    // SAFETY: the call receives no pointer.
    let result = unsafe { libc::dup2(other.as_raw_fd(), ring) };
    assert_eq!(result, ring);
    replaced
}

/// Stops submissions: the kernel finds no entry in another io_uring, so it accepts none, without an error. Returns the replaced
/// descriptor.
pub(super) fn stop_uring(fixture: &Fixture) -> OwnedFd {
    replace_uring(fixture, &IoUring::new(1).unwrap())
}

/// Breaks the io_uring for good. The kernel keeps it while the caller keeps the returned descriptor.
fn break_uring(fixture: &Fixture) -> OwnedFd {
    replace_uring(fixture, &File::open("/dev/null").unwrap())
}

/// Resets the device. The kernel does not cancel its requests: the reset cannot ask it to.
fn reset_without_cancellation(fixture: &mut Fixture) {
    let ring = break_uring(fixture);
    fixture.reset();
    replace_uring(fixture, &ring);
}

/// Adds a write of `data` at `sector` and notifies the device. Returns the address of the status.
fn start_write(fixture: &mut Fixture, sector: u64, data: &[u8]) -> u64 {
    let address = fixture.place(data);
    let length = u32::try_from(data.len()).unwrap();
    let (_, status) = fixture.add(OUT, sector, &[Buffer::readable(address, length)]);
    fixture.block.notify(0);
    status
}

/// A disk whose reads wait until the test writes their data. Drop writes data, so that no device waits for ever: it
/// must precede the drop of the device.
struct Pipe {
    file: File,
    _path: Scratch,
}

impl Pipe {
    fn supply(&mut self) {
        self.file.write_all(&[7; 512]).unwrap();
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.supply();
    }
}

/// Creates a device with a read in flight at `data`, the returned address.
fn start_pending_read() -> (Fixture, Pipe, u64) {
    let path = Scratch::empty();
    std::fs::remove_file(path.path()).unwrap();
    let name = CString::new(path.path().as_os_str().as_bytes()).unwrap();
    // SAFETY: `name` outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    // The other end stays open, and so the pipe has no end of file.
    let file = File::options().read(true).write(true).open(path.path()).unwrap();
    let disk = path.path().to_str().unwrap();
    let mut fixture = Fixture::with_fake_disk(disk, 2 * PIECE_SIZE, IoEngine::Async);
    let pipe = Pipe { file, _path: path };
    let data = fixture.place(&[NONE; 512]);
    fixture.add(IN, 0, &[Buffer::writable(data, 512)]);
    fixture.block.notify(0);
    assert_eq!(fixture.block.in_flight(), 1);
    (fixture, pipe, data)
}

/// Creates a write-through device: io_uring executes its writes.
fn write_through(scratch: &Scratch) -> Fixture {
    let mut fixture = Fixture::on(scratch, IoEngine::Async);
    fixture.reset();
    fixture.activate(0);
    fixture
}

#[test]
fn permanent_failure_selects_sync() {
    if !require(Requirement::IoUring) {
        return;
    }
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = write_through(&scratch);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    assert_eq!(fixture.block.engine(), IoEngine::Async);
    break_uring(&fixture);
    let address = fixture.place(&[NONE; 512]);
    let statuses = [
        fixture.add(OUT, 0, &[Buffer::readable(address, 512)]).1,
        fixture.add(IN, 0, &[Buffer::writable(address, 512)]).1,
        fixture.add(OUT, 0, &[Buffer::readable(address, 512)]).1,
    ];
    assert_eq!(fixture.run(3).len(), 3);
    assert_eq!(statuses.map(|status| fixture.status(status)), [IOERR, OK, IOERR]);
    assert_eq!(fixture.block.engine(), IoEngine::Sync);
    assert_eq!(
        (fixture.block.metrics().errors, fixture.block.in_flight()),
        (2, 0)
    );
    assert!(fixture.is_idle(), "the device retries forever");
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    fixture.reset();
    fixture.activate(0);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
}

#[test]
fn uring_outlives_reset() {
    if !require(Requirement::IoUring) {
        return;
    }
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = write_through(&scratch);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    let ring = fixture.block.uring_descriptor();
    assert!(ring.is_some());
    fixture.reset();
    assert_eq!(fixture.block.uring_descriptor(), ring);
    fixture.activate(0);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    assert_eq!(fixture.block.uring_descriptor(), ring);
}

#[test]
fn reset_discards_requests_before_submission() {
    if !require(Requirement::IoUring) {
        return;
    }
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = write_through(&scratch);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    let ring = stop_uring(&fixture);
    let address = fixture.place(&[2; 512]);
    fixture.add(OUT, 5, &[Buffer::readable(address, 512)]);
    fixture.block.notify(0);
    assert_eq!(fixture.block.in_flight(), 1);
    replace_uring(&fixture, &ring);
    fixture.reset();
    assert_eq!(fixture.block.in_flight(), 0);
    let before = scratch.contents();
    fixture.activate(0);
    assert_eq!(fixture.write(9, &[3; 512]), OK);
    assert_eq!(scratch.contents()[9 * 512..10 * 512], [3; 512]);
    assert!(
        scratch.contents()[..9 * 512] == before[..9 * 512],
        "the request from before the reset has changed the disk"
    );
}

#[test]
fn full_uring_that_fails_continues_queue() {
    if !require(Requirement::IoUring) {
        return;
    }
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = write_through(&scratch);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    stop_uring(&fixture);
    let address = fixture.place(&[2; 512]);
    let (head, _) = fixture.add(OUT, 5, &[Buffer::readable(address, 512)]);
    for _ in 1..256 {
        fixture.driver.queues[0].make_available(head);
    }
    fixture.block.notify(0);
    assert_eq!(fixture.block.in_flight(), 256);
    // The driver sends no notification for this request: the device enables them only in an empty queue.
    let (_, status) = fixture.add(GET_ID, 0, &[]);
    fixture.block.notify(0);
    assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 256));
    break_uring(&fixture);
    let mut used = 0;
    while used < 257 {
        // No wait: the device must request each event itself.
        fixture.process_events(0);
        used += fixture.driver.queues[0].collect_used().len();
    }
    assert_eq!((fixture.status(status), fixture.block.in_flight()), (OK, 0));
}

#[test]
fn lost_request_keeps_buffer() {
    if !require(Requirement::IoUring) {
        return;
    }
    for resets in [false, true] {
        let (mut fixture, pipe, data) = start_pending_read();
        let buffer = fixture.block.executor.uring.as_ref().unwrap().buffers()[0];
        // The kernel still has the read, but the device cannot wait for it any more.
        let ring = break_uring(&fixture);
        if resets {
            fixture.block.reset();
        }
        let Fixture { block, driver, .. } = fixture;
        drop(block);
        // An allocation returns the memory that was freed last.
        let allocations: Vec<_> = (0..64).map(|_| Vec::<u8>::with_capacity(512)).collect();
        assert!(
            allocations
                .iter()
                .all(|allocation| allocation.as_ptr().addr() != buffer),
            "the kernel may write to freed memory"
        );
        drop(pipe);
        drop(ring);
        assert_eq!(driver.read(data, 512), [NONE; 512]);
    }
}

#[test]
fn update_waits_for_uring() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, data) = start_pending_read();
    let scratch = Scratch::new(SECTORS * 512);
    let path = Some(scratch.path());
    assert!(matches!(fixture.block.reopen(path), Err(Error::Busy)));
    assert_ne!(fixture.block.disk().path(), scratch.path());
    assert_eq!(fixture.block.in_flight(), 1);
    pipe.supply();
    // Completed by the kernel, but not yet by the device.
    let mut polls: Vec<_> = fixture
        .block
        .watched_fds()
        .iter()
        .map(|fd| poll_of(fd.descriptor))
        .collect();
    assert!(poll(&mut polls, 60_000) > 0);
    fixture.block.reopen(path).unwrap();
    assert_eq!(fixture.driver.queues[0].collect_used().len(), 1);
    assert_eq!(fixture.driver.read(data, 512), [7; 512]);
    assert_eq!(fixture.read(1, 512), (OK, pattern(512, 512)));
}

#[test]
fn submission_waits_for_memory_of_other_requests() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, _) = start_pending_read();
    let ring = stop_uring(&fixture);
    let address = fixture.place(&[1; 512]);
    let (_, status) = fixture.add(OUT, 0, &[Buffer::readable(address, 512)]);
    // The kernel rejects it again and again, but the end of the read may change that.
    for _ in 0..20 {
        fixture.block.notify(0);
    }
    assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 2));
    assert_eq!(fixture.block.engine(), IoEngine::Async);
    replace_uring(&fixture, &ring);
    pipe.supply();
    fixture.run(2);
    assert_eq!(fixture.status(status), OK);
}

#[test]
fn write_waits_for_abandoned_request() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, _) = start_pending_read();
    reset_without_cancellation(&mut fixture);
    fixture.activate(fixture.block.features());
    let status = start_write(&mut fixture, 0, &[1; 512]);
    // An abandoned write could follow this one.
    assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 0));
    pipe.supply();
    fixture.run(1);
    assert_eq!(fixture.status(status), OK);
}

#[test]
fn update_after_reset_waits_for_abandoned_request() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, _) = start_pending_read();
    let scratch = Scratch::new(SECTORS * 512);
    reset_without_cancellation(&mut fixture);
    assert!(matches!(
        fixture.block.reopen(Some(scratch.path())),
        Err(Error::Busy)
    ));
    pipe.supply();
    // No driver activates the device meanwhile.
    scratch::wait_until("the end of the abandoned read", || {
        if !fixture.is_idle() {
            fixture.process_events(0);
        }
        fixture.block.reopen(Some(scratch.path())).is_ok()
    });
    assert_eq!(fixture.block.disk().path(), scratch.path());
}

#[test]
fn write_beside_discard_goes_to_uring() {
    if !require(Requirement::IoUring) {
        return;
    }
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Async, SECTORS);
    assert_eq!(fixture.write(16, &[1; 4096]), OK);
    fixture.add_segment(DISCARD, 0, 8);
    fixture.block.notify(0);
    storage.expect_calls(1);
    let ring = stop_uring(&fixture);
    let status = start_write(&mut fixture, 16, &[2; 4096]);
    assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 2));
    replace_uring(&fixture, &ring);
    storage.permit(ALL);
    fixture.reset();
}

#[test]
fn buffers_of_abandoned_requests_are_limited() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, _) = start_pending_read();
    let length = u32::try_from(PIECE_SIZE).unwrap();
    let address = fixture.driver.buffers;
    for _ in 0..4 {
        fixture.add(IN, 0, &[Buffer::writable(address, length)]);
    }
    fixture.block.notify(0);
    reset_without_cancellation(&mut fixture);
    fixture.activate(fixture.block.features());
    assert!(fixture.block.executor.uring.as_ref().unwrap().is_full());
    let (_, status) = fixture.add(GET_ID, 0, &[]);
    fixture.block.notify(0);
    assert_eq!(fixture.status(status), NONE);
    // The end of reads makes the eventfd readable, and the queue continues.
    pipe.supply();
    pipe.supply();
    while fixture.status(status) == NONE {
        fixture.process_events(60_000);
    }
    assert_eq!(fixture.status(status), OK);
}

#[test]
fn all_requests_fit_beside_queued_cancellation() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, _) = start_pending_read();
    // The cancellation stays queued, and then the read ends.
    let ring = stop_uring(&fixture);
    fixture.reset();
    pipe.supply();
    scratch::wait_until("the end of the abandoned read", || {
        fixture.block.executor.reap_abandoned();
        !fixture.block.executor.has_abandoned()
    });
    fixture.activate(fixture.block.features());
    let address = fixture.place(&[NONE; 512]);
    let (head, status) = fixture.add(IN, 0, &[Buffer::writable(address, 512)]);
    for _ in 1..256 {
        fixture.driver.queues[0].make_available(head);
    }
    fixture.block.notify(0);
    assert_eq!(fixture.block.in_flight(), 255);
    assert!(fixture.driver.queues[0].collect_used().is_empty());
    replace_uring(&fixture, &ring);
    let mut used = 0;
    while used < 256 {
        // Fewer bytes than a pipe takes without a reader.
        for _ in 0..16 {
            pipe.supply();
        }
        used += fixture.run(16).len();
        assert_eq!(fixture.status(status), OK);
    }
    assert_eq!(fixture.block.metrics().errors, 0);
}

#[test]
fn requests_suspended_by_failed_uring_continue_without_it() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, _pipe, data) = start_pending_read();
    stop_uring(&fixture);
    fixture.add(IN, 0, &[Buffer::writable(data, 512)]);
    fixture.block.notify(0);
    let ring = break_uring(&fixture);
    fixture.block.drain();
    // A request in the queue of the failed io_uring would fail.
    assert_eq!(
        (fixture.unfinished(), fixture.block.engine()),
        (vec![0, 0], IoEngine::Sync)
    );
    drop(ring);
}

#[test]
fn write_waits_for_request_of_failed_uring() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, data) = start_pending_read();
    let ring = break_uring(&fixture);
    fixture.add(IN, 0, &[Buffer::writable(data, 512)]);
    fixture.run(1);
    assert_eq!(fixture.block.engine(), IoEngine::Sync);
    fixture.reset();
    let other = Scratch::new(SECTORS * 512);
    assert!(matches!(
        fixture.block.reopen(Some(other.path())),
        Err(Error::Busy)
    ));
    fixture.activate(fixture.block.features());
    let status = start_write(&mut fixture, 0, &[1; 512]);
    assert_eq!(fixture.status(status), NONE);
    pipe.supply();
    fixture.run(1);
    fixture.block.reopen(Some(other.path())).unwrap();
    assert!(fixture.block.uring_descriptor().is_none());
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    drop(ring);
}

#[test]
fn reset_before_submission_keeps_uring() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, data) = start_pending_read();
    let ring = stop_uring(&fixture);
    fixture.add(IN, 0, &[Buffer::writable(data, 512)]);
    fixture.block.notify(0);
    fixture.reset();
    fixture.activate(fixture.block.features());
    replace_uring(&fixture, &ring);
    let status = start_write(&mut fixture, 0, &[1; 512]);
    assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 0));
    pipe.supply();
    fixture.run(1);
    assert_eq!(fixture.status(status), OK);
    assert_eq!(fixture.block.engine(), IoEngine::Async);
}

#[test]
fn write_beside_write_of_uring_goes_to_uring() {
    if !require(Requirement::IoUring) {
        return;
    }
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Async, SECTORS);
    storage.permit(ALL);
    assert_eq!(fixture.write(16, &[1; 4096]), OK);
    let pace = &fixture.block.executor.disk.pace;
    pace.lacks_nowait_writes.set(true);
    fixture.block.executor.disk.note_write(Duration::MAX);
    let address = fixture.place(&[2; 4096]);
    assert_eq!(fixture.write(16, &[1; 4096]), OK);
    let ring = stop_uring(&fixture);
    fixture.add(OUT, 16, &[Buffer::readable(address, 4096)]);
    fixture.block.notify(0);
    for _ in 0..64 {
        fixture.block.executor.disk.note_write(Duration::ZERO);
    }
    let (_, status) = fixture.add(OUT, 16, &[Buffer::readable(address, 4096)]);
    fixture.block.notify(0);
    assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 2));
    replace_uring(&fixture, &ring);
    fixture.run(2);
    assert_eq!(fixture.write(16, &[1; 4096]), OK);
}

#[test]
fn write_through_write_runs_on_thread_of_kernel() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, _) = start_pending_read();
    pipe.supply();
    fixture.run(1);
    fixture.reset();
    fixture.activate(0);
    // A pipe with space: the kernel needs no wait.
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    // SAFETY: the call receives no pointer.
    let name = format!("iou-wrk-{}\n", unsafe { libc::gettid() });
    let mut tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread of the kernel lasts for seconds after its work.
    assert!(
        tasks.any(|task| {
            std::fs::read_to_string(task.unwrap().path().join("comm")).is_ok_and(|comm| comm == name)
        }),
        "the submission has executed the write"
    );
}

#[test]
fn drain_on_thread_that_exits_keeps_requests() {
    if !require(Requirement::IoUring) {
        return;
    }
    let (mut fixture, mut pipe, _) = start_pending_read();
    let address = fixture.place(&[NONE; 1024]);
    let (_, status) = fixture.add(IN, 0, &[Buffer::writable(address, 1024)]);
    pipe.supply();
    fixture.run(1);
    // The first half of the second read.
    pipe.supply();
    let block = &mut fixture.block;
    std::thread::scope(|scope| {
        scope.spawn(|| block.drain());
    });
    assert_eq!((fixture.status(status), fixture.unfinished()), (NONE, vec![512]));
    assert!(!fixture.is_idle(), "no event continues the read");
    fixture.process_events(0);
    pipe.supply();
    fixture.run(1);
    assert_eq!(fixture.status(status), OK);
    assert_eq!(fixture.driver.read(address, 1024), [7; 1024]);
}
