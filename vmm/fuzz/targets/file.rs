//! Any bytes as a state file, with the right lengths and checksum: header, sections, configuration. Takes no KVM.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::control::{describe_snapshot, state_version};
use vmm::memory::memfd;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    fuzz::refit(&mut bytes);
    let file = memfd(c"state", &bytes).expect("a file in memory");
    let path = fuzz::path(&file);
    let _ = state_version(&path);
    let _ = describe_snapshot(&path);
});
