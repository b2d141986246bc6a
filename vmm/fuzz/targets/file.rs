//! Parses arbitrary bytes as a state file with valid lengths and checksum: header, sections, configuration. Requires no KVM.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::control::{describe_snapshot, state_version};
use vmm::memory::memfd;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    fuzz::correct_header(&mut bytes);
    let file = memfd(c"state", &bytes).expect("cannot create a file in memory");
    let path = fuzz::path(&file);
    let _ = state_version(&path);
    let _ = describe_snapshot(&path);
});
