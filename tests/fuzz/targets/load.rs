//! Restore of a machine from a state file. Requires `/dev/kvm`. The guest does not run.
//!
//! A load fails with an error, or creates a paused VM. An input is the sections of a state file of this host with 8 MiB of guest
//! memory. The load opens the files and tap interfaces of the configuration in it.

use std::fs::{self, File};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use devices::serial::SerialOutput;
use scratch::Directory;
use snapshot::file::{self, Contents, Header, HostIdentity};
use vmm::ErrorChain;
use vmm::arch::{Native, Platform};
use vmm::control::{Control, InstanceState, LoadSnapshotParams, Progress, Timeline};
use vmm::memory::{memfd, page_size};
use vmm::vm::Console;

use super::state::{correct_header, path};

const MEMORY: u64 = 8 << 20;

static MEMORY_FILE: LazyLock<File> = LazyLock::new(|| {
    let file = memfd(c"memory", b"").expect("cannot create a file in memory");
    file.set_len(MEMORY)
        .expect("cannot set the size of the memory file");
    file
});

/// Path of the drive in the corpus.
const DISK: [u8; 24] = [b'@'; 24];

static DISK_FILE: LazyLock<File> =
    LazyLock::new(|| memfd(c"disk", &[0; 0x8000]).expect("cannot create a file in memory"));

/// Replaces [`DISK`] by a path of the same length to the disk of this process.
fn replace_disk(sections: &mut [u8]) {
    let path = path(&DISK_FILE);
    // Further slashes at the front have no effect.
    let path = format!("{:/>width$}", path.display(), width = DISK.len());
    while let Some(at) = sections.windows(DISK.len()).position(|bytes| bytes == DISK) {
        sections[at..at + DISK.len()].copy_from_slice(path.as_bytes());
    }
}

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
    let directory = Directory::new();
    let path = directory.path("state");
    file::write_bytes(&path, &header, &[]).expect("cannot write the state file");
    fs::read(&path).expect("cannot read the state file")
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

pub fn run(sections: &[u8]) {
    let mut bytes = [&HEADER, sections].concat();
    replace_disk(&mut bytes);
    correct_header(&mut bytes);
    let state = memfd(c"state", &bytes).expect("cannot create a file in memory");
    let timeline = Arc::new(Timeline::new(Instant::now(), false));
    let mut control = Control::new(Box::new(|| Ok(console())), timeline);
    let params = LoadSnapshotParams::new(path(&state), path(&MEMORY_FILE));
    match control.load_snapshot(params) {
        Ok(progress) => assert_eq!(
            (progress, control.state()),
            (Progress::Done, InstanceState::Paused)
        ),
        Err(error) => {
            let text = ErrorChain(&error).to_string();
            assert!(!text.contains("has ended"), "a vCPU thread has panicked: {text}");
        }
    }
}
