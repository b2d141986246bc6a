//! Block device on a file in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use devices::virtio::Block;
use devices::virtio::block::disk::Error;
use devices::virtio::block::{CacheType, DiskConfig, IoEngine};
use vmm::memory::memfd;

use super::super::board::ManualClock;
use super::super::input::Input;
use super::super::state::path;
use super::guest::Guest;
use super::{Model, ONE_PER_100_MS, Scene, buffer};

const SECTOR: usize = 512;
/// Sectors of the disk.
const SECTORS: usize = 64;
const LENGTH: usize = SECTORS * SECTOR;
/// Types of requests, the last one invalid.
const KINDS: [u32; 8] = [0, 1, 4, 8, 11, 13, 1, 99];

/// The disk and the options of the drive.
pub struct Drive {
    disk: File,
    config: DiskConfig,
    /// The disk is treated as that of a server: most requests wait for the worker or io_uring.
    is_remote: bool,
}

/// Updates the size of the disk, which fails while requests are in flight.
fn update_size(device: &mut Block) -> Result<(), Error> {
    let mut update = device.disk().handle().update(None)?;
    device.update(&mut update)
}

impl Drive {
    pub fn new(options: u8) -> Self {
        let disk = memfd(c"disk", &initial_content()).expect("cannot create a file in memory");
        let choose = |bit: u8| options & 1 << bit != 0;
        Self {
            disk,
            config: DiskConfig {
                id: "disk".to_owned(),
                path: PathBuf::new(),
                read_only: choose(0),
                shared: false,
                allow_empty: false,
                cache: if choose(1) {
                    CacheType::Writeback
                } else {
                    CacheType::Unsafe
                },
                engine: if choose(2) {
                    IoEngine::Async
                } else {
                    IoEngine::Sync
                },
                bandwidth: None,
                operations: choose(3).then_some(ONE_PER_100_MS),
            },
            is_remote: choose(4),
        }
    }

    fn content(&self) -> Vec<u8> {
        let length = self.disk.metadata().expect("cannot read the length").len();
        assert_eq!(length, LENGTH as u64, "the length of the disk has changed");
        let mut content = vec![0; LENGTH];
        self.disk
            .read_exact_at(&mut content, 0)
            .expect("cannot read the disk");
        content
    }
}

/// Returns the first content of the disk: each sector has its number.
fn initial_content() -> Vec<u8> {
    let sectors = (0..SECTORS).map(|number| [number.to_le_bytes()[0]; SECTOR]);
    sectors.collect::<Vec<_>>().concat()
}

/// Returns the header of a request.
fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

impl Model for Drive {
    type Device = Block;
    const QUEUES: usize = 1;

    /// Uses a copy of the disk: two devices cannot open one file.
    fn create(&mut self, clock: ManualClock) -> Box<Block> {
        self.disk = memfd(c"disk", &self.content()).expect("cannot create a file in memory");
        self.config.path = path(&self.disk);
        let mut block = Block::open(&self.config, Box::new(clock)).expect("cannot open the disk");
        if self.is_remote {
            block.make_disk_remote().expect("cannot duplicate the disk");
        }
        Box::new(block)
    }

    fn drain(device: &mut Block) {
        device.drain();
    }

    fn apply_event(&mut self, device: &mut Block, _: &mut Input<'_>) {
        // Requests in flight may prevent it.
        let _ = update_size(device);
    }

    fn add_request(&mut self, guest: &mut Guest, input: &mut Input<'_>) {
        let kind = KINDS[usize::from(input.u8()) % KINDS.len()];
        let sector = u64::from(input.u8()) % (SECTORS as u64 + 2);
        let is_read = [0, 8].contains(&kind);
        let data = match kind {
            0 => vec![0; SECTOR * (usize::from(input.u8()) % 4)],
            8 => vec![0; 20],
            4 => Vec::new(),
            11 | 13 => {
                let count = u32::from(input.u8()) % 70;
                let flags = u32::from(input.u8()) % 3;
                [
                    &sector.to_le_bytes()[..],
                    &count.to_le_bytes(),
                    &flags.to_le_bytes(),
                ]
                .concat()
            }
            _ => vec![input.u8(); SECTOR * (usize::from(input.u8()) % 4)],
        };
        let sector = if kind <= 1 { sector } else { 0 };
        let header = guest.place(&header(kind, sector));
        let length = u32::try_from(data.len()).expect("the data is short");
        let data = guest.place(&data);
        let status = guest.place(&[0xaa]);
        let chain = [
            buffer(header, 16, false),
            buffer(data, length, is_read),
            buffer(status, 1, true),
        ];
        guest.add(0, &chain);
    }

    fn check_recovery(&mut self, scene: &mut Scene<Self>) {
        // An abandoned write would change the disk between the read and the check.
        scratch::wait_until("the end of abandoned requests", || {
            update_size(scene.transport.device_mut()).is_ok()
        });
        let guest = &mut scene.guest;
        let header = guest.place(&header(0, 1));
        let data = guest.place(&[0xee; SECTOR]);
        let status = guest.place(&[0xaa]);
        let chain = [
            buffer(header, 16, false),
            buffer(data, 512, true),
            buffer(status, 1, true),
        ];
        guest.add(0, &chain);
        scene.clock.advance(Duration::from_secs(1));
        scene.notify(0);
        let mut used = Vec::new();
        scratch::wait_until("a request after a reset", || {
            scene.operate(|transport| transport.device_mut().complete_requests());
            scene.process_events();
            used = scene.guest.driver.queues[0].collect_used();
            !used.is_empty()
        });
        let guest = &mut scene.guest;
        assert_eq!(used.len(), 1, "other requests are complete after a reset");
        assert_eq!((used[0].length, guest.driver.read(status, 1)), (513, vec![0]));
        let content = self.content();
        assert!(guest.driver.read(data, SECTOR) == content[SECTOR..2 * SECTOR]);
        assert!(
            !self.config.read_only || content == initial_content(),
            "a read-only disk has changed"
        );
    }
}

/// The first byte gives the options of the drive.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let drive = Drive::new(input.u8());
    super::run(drive, &mut input);
}
