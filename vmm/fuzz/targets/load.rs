//! Loads arbitrary sections, in a state file of this host, into a machine of 8 MiB. Requires `/dev/kvm`. The guest does not run.

#![no_main]

use std::fs::{self, File};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use devices::serial::SerialOutput;
use libfuzzer_sys::fuzz_target;
use snapshot::file::{self, Contents, Header, HostIdentity};
use vmm::arch::{Native, Platform};
use vmm::control::{Control, LoadSnapshotParams, Timeline};
use vmm::memory::{memfd, page_size};
use vmm::vm::Console;

const MEMORY: u64 = 8 << 20;

static MEMORY_FILE: LazyLock<File> = LazyLock::new(|| {
    let file = memfd(c"memory", b"").expect("cannot create a file in memory");
    file.set_len(MEMORY)
        .expect("cannot set the size of the memory file");
    file
});

/// Bytes of a state file without sections.
static HEADER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let header = Header {
        host: HostIdentity {
            architecture: Native::ARCHITECTURE,
            page_size: u32::try_from(page_size()).expect("page size exceeds 32 bits"),
            cpu: Native::cpu_identity(),
        },
        memory: MEMORY,
        contents: Contents::Full,
    };
    let path = std::env::temp_dir().join(format!("mayfly-fuzz-{}", std::process::id()));
    file::write_bytes(&path, &header, &[]).expect("cannot write the state file");
    let bytes = fs::read(&path).expect("cannot read the state file");
    fs::remove_file(&path).expect("cannot remove the state file");
    bytes
});

fn console() -> Console {
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .expect("cannot open /dev/null");
    Console {
        output: SerialOutput::new(null.into()).expect("cannot create the serial output"),
        input: None,
        filter: None,
        guard: None,
    }
}

fuzz_target!(|sections: &[u8]| {
    let mut bytes = [&HEADER, sections].concat();
    fuzz::correct_header(&mut bytes);
    let state = memfd(c"state", &bytes).expect("cannot create a file in memory");
    let timeline = Arc::new(Timeline::new(Instant::now(), false));
    let mut control = Control::new(Box::new(|| Ok(console())), timeline);
    let params = LoadSnapshotParams::new(fuzz::path(&state), fuzz::path(&MEMORY_FILE));
    let _ = control.load_snapshot(&params);
});
