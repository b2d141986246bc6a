//! Any sections, in a state file of this host, loaded into a machine of 8 MiB: all that each part of it takes or refuses. Takes
//! `/dev/kvm`. The guest does not run.

#![no_main]

use std::fs::{self, File};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use devices::serial::SerialOutput;
use libfuzzer_sys::fuzz_target;
use snapshot::file::{self, Contents, Header, Host};
use vmm::arch::{Native, Platform};
use vmm::control::{Control, Thaw, Timeline};
use vmm::memory::{memfd, page_size};
use vmm::vm::Console;

const MEMORY: u64 = 8 << 20;

static MEMORY_FILE: LazyLock<File> = LazyLock::new(|| {
    let file = memfd(c"memory", b"").expect("a file in memory");
    file.set_len(MEMORY).expect("a hole");
    file
});

/// A state file without sections.
static FRONT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let header = Header {
        host: Host {
            architecture: Native::ARCHITECTURE,
            page_size: u32::try_from(page_size()).expect("a page"),
            cpu: Native::processor(),
        },
        memory: MEMORY,
        contents: Contents::Whole,
    };
    let path = std::env::temp_dir().join(format!("mayfly-fuzz-{}", std::process::id()));
    file::write_bytes(&path, &header, &[]).expect("a state file");
    let bytes = fs::read(&path).expect("the state file");
    fs::remove_file(&path).expect("the state file");
    bytes
});

fn console() -> Console {
    let null = File::options().write(true).open("/dev/null").expect("/dev/null");
    Console {
        output: SerialOutput::new(null.into()).expect("an output"),
        input: None,
        filter: None,
        guard: None,
    }
}

fuzz_target!(|sections: &[u8]| {
    let mut bytes = [&FRONT, sections].concat();
    fuzz::refit(&mut bytes);
    let state = memfd(c"state", &bytes).expect("a file in memory");
    let timeline = Arc::new(Timeline::new(Instant::now(), false));
    let mut control = Control::new(Box::new(|| Ok(console())), timeline);
    let thaw = Thaw::new(fuzz::path(&state), fuzz::path(&MEMORY_FILE));
    let _ = control.load(&thaw);
});
