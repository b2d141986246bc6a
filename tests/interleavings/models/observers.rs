//! Data that observers read without a lock.

use interleavings::arch::AddressSpace;
use interleavings::sync::Arc;
use interleavings::unclaimed::{Access, KEPT_ACCESSES, UnclaimedAccesses};
use loom::thread;

use crate::check;

#[test]
fn reader_sees_no_mixed_access() {
    check(|| {
        let accesses = Arc::new(UnclaimedAccesses::default());
        let kept = u64::try_from(KEPT_ACCESSES).unwrap();
        (0..kept).for_each(|address| record(&accesses, address));
        let vcpu = accesses.clone();
        // Replaces the oldest entry.
        let thread = thread::spawn(move || record(&vcpu, kept));
        for entry in accesses.list() {
            assert_eq!(entry.count, entry.access.address + 1);
        }
        thread.join().unwrap();
    });
}

fn record(accesses: &UnclaimedAccesses, address: u64) {
    let access = Access {
        space: AddressSpace::Memory,
        is_write: false,
        width: 1,
        address,
    };
    accesses.record(access, address + 1);
}
