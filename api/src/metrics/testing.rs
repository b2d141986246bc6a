//! What the tests of this module share.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use vmm::control::{DriveMetrics, InterfaceMetrics, Metrics, Phase, VcpuMetrics};

/// Of each kind two or more, and every number another.
pub(super) fn full() -> Metrics {
    let mut next: u32 = 100;
    let mut number = || {
        next += 1;
        next
    };
    let mut metrics = Metrics {
        phases: [("open image", None), ("create VM", None), ("first exit", Some(3))]
            .into_iter()
            .map(|(name, vcpu)| Phase {
                name,
                vcpu,
                start: f64::from(number()) / 1e5,
                length: f64::from(number()) / 1e5,
            })
            .collect(),
        ..Metrics::default()
    };
    let mut number = || u64::from(number());
    for id in 0..2 {
        metrics.vcpus.push(VcpuMetrics {
            id,
            exits: vec![("io_in", number()), ("halt", number()), ("other", number())],
        });
    }
    for id in ["rootfs", "a\"b\\c\nd"] {
        let mut drive = DriveMetrics {
            id: id.into(),
            metrics: Default::default(),
        };
        let one = &mut drive.metrics;
        (one.reads, one.writes) = (number(), number());
        (one.read_bytes, one.written_bytes) = (number(), number());
        (one.flushes, one.discards, one.errors) = (number(), number(), number());
        (one.throttled, one.malformed) = (number(), number());
        for latency in [
            &mut one.read_latency,
            &mut one.write_latency,
            &mut one.flush_latency,
        ] {
            let us = number() * 1000;
            (0..number()).for_each(|_| latency.record(Duration::from_micros(us)));
            latency.record(Duration::from_secs(20));
        }
        metrics.drives.push(drive);
    }
    for id in ["net1", "br-0"] {
        let mut interface = InterfaceMetrics {
            id: id.into(),
            metrics: Default::default(),
        };
        for one in [&mut interface.metrics.receive, &mut interface.metrics.transmit] {
            (one.packets, one.bytes, one.drops) = (number(), number(), number());
            (one.errors, one.throttled) = (number(), number());
        }
        metrics.interfaces.push(interface);
    }
    (metrics.unclaimed_ports, metrics.unclaimed_addresses) = (number(), number());
    (metrics.memory, metrics.memory_touched) = (number(), number());
    metrics.resident = Some(number());
    metrics
}

/// The numbers in `value`, with where they are.
pub(super) fn leaves(value: &Value) -> Vec<(String, f64)> {
    fn walk(value: &Value, path: &str, found: &mut Vec<(String, f64)>) {
        match value {
            Value::Number(number) => found.push((path.into(), number.as_f64().unwrap())),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(index, item)| walk(item, &format!("{path}/{index}"), found)),
            Value::Object(fields) => fields
                .iter()
                .for_each(|(name, field)| walk(field, &format!("{path}/{name}"), found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found
}

/// A folder of its own, which goes when this goes.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mayfly-metrics-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A path with a FIFO.
    pub(super) fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let text = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: `text` ends with a zero and outlives the call.
        assert_eq!(unsafe { libc::mkfifo(text.as_ptr(), 0o600) }, 0);
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The reading end of a FIFO.
pub(super) struct Reader(File);

impl Reader {
    pub(super) fn open(path: &Path) -> Self {
        let mut options = OpenOptions::new();
        Self(
            options
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)
                .unwrap(),
        )
    }

    /// Makes the FIFO as small as it can be, one page.
    pub(super) fn shrink(&self) -> usize {
        // SAFETY: the call takes no pointer.
        let size = unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETPIPE_SZ, 1) };
        usize::try_from(size).unwrap()
    }

    /// All that is there, at most `most` bytes.
    pub(super) fn read(&mut self, most: usize) -> Vec<u8> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let mut piece = [0; 512];
        while bytes.len() < most {
            let room = piece.len().min(most - bytes.len());
            match self.0.read(&mut piece[..room]) {
                Ok(0) => break,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                count => bytes.extend(&piece[..count.unwrap()]),
            }
        }
        bytes
    }
}
