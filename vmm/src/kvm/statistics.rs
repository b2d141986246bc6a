//! Statistics of a vCPU by its statistics descriptor (KVM API §4.133, `KVM_GET_STATS_FD`), since Linux 5.14.
//!
//! The call that returns the descriptor waits for the end of KVM_RUN: only the vCPU thread makes it. A read of the descriptor takes no
//! lock, so that any thread reads it while the guest runs.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;

vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Bytes of `struct kvm_stats_header`.
const HEADER: usize = 24;
/// Bytes of `struct kvm_stats_desc` before the name.
const DESCRIPTOR: usize = 16;
/// Maximum bytes of all descriptors: the kernel has some fifty with 64 bytes each.
const MAX_DESCRIPTORS: usize = 1 << 16;

/// Statistics descriptor of a vCPU, and the places of its values.
#[derive(Debug)]
pub struct Statistics {
    file: File,
    places: Places,
}

/// Offsets of values in the file; `None` for those that this kernel lacks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    /// 1 while the vCPU waits in a halt. Since Linux 5.16.
    blocking: Option<u64>,
    /// Number of halts that the vCPU thread has slept in or polled for. Only on x86_64.
    halt_exits: Option<u64>,
}

/// Halts of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HaltStatistics {
    /// The vCPU waits in a halt.
    pub is_halted: Option<bool>,
    /// Number of halts.
    pub halts: Option<u64>,
}

impl Statistics {
    /// Opens the statistics of `vcpu`. The calling thread must be that of the vCPU: the call waits for the end of KVM_RUN. `None` where
    /// the kernel has no statistics or the process has no descriptor left.
    pub(crate) fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the call takes no pointer.
        let descriptor = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if descriptor < 0 {
            return None;
        }
        // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
        let file = unsafe { File::from_raw_fd(descriptor) };
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).ok()?;
        let layout = Layout::parse(&header)?;
        let mut descriptors = vec![0; layout.length];
        file.read_exact_at(&mut descriptors, layout.descriptors).ok()?;
        Some(Self {
            file,
            places: layout.find(&descriptors),
        })
    }

    /// Reads the current values.
    pub(crate) fn read(&self) -> HaltStatistics {
        let read = |place: Option<u64>| {
            let mut value = [0; 8];
            self.file.read_exact_at(&mut value, place?).ok()?;
            Some(u64::from_ne_bytes(value))
        };
        HaltStatistics {
            is_halted: read(self.places.blocking).map(|value| value != 0),
            halts: read(self.places.halt_exits),
        }
    }
}

/// Layout of the file, from its header.
struct Layout {
    /// Bytes of each name.
    name: usize,
    /// Offset of the descriptors.
    descriptors: u64,
    /// Bytes of all descriptors.
    length: usize,
    /// Offset of the values.
    data: u64,
}

impl Layout {
    fn parse(header: &[u8; HEADER]) -> Option<Self> {
        let field = |index: usize| word(header, index * 4);
        let name = usize::try_from(field(1)?).ok()?;
        let number = usize::try_from(field(2)?).ok()?;
        let length = name.checked_add(DESCRIPTOR)?.checked_mul(number)?;
        (length <= MAX_DESCRIPTORS).then_some(Self {
            name,
            descriptors: field(4)?.into(),
            length,
            data: field(5)?.into(),
        })
    }

    fn find(&self, descriptors: &[u8]) -> Places {
        let mut places = Places::default();
        for descriptor in descriptors.chunks_exact(DESCRIPTOR + self.name) {
            let (fields, name) = descriptor.split_at(DESCRIPTOR);
            let place = word(fields, 8).map(|offset| self.data + u64::from(offset));
            match name.split(|byte| *byte == 0).next() {
                Some(b"blocking") => places.blocking = place,
                Some(b"halt_exits") => places.halt_exits = place,
                _ => {}
            }
        }
        places
    }
}

/// Returns the 32-bit field at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset + 4)?;
    field.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::{Layout, Places};

    /// Returns header and descriptors of values with these names, of `size` bytes each.
    fn file(size: u32, names: &[&str]) -> ([u8; 24], Vec<u8>) {
        let number = u32::try_from(names.len()).unwrap();
        let header = [0, size, number, 24, 72, 1000].map(u32::to_ne_bytes);
        let mut descriptors = Vec::new();
        for (index, name) in (0..).zip(names) {
            let fields = [0, 1 << 16, index * 8, 0].map(u32::to_ne_bytes);
            descriptors.extend(fields.concat());
            let mut padded = name.as_bytes().to_vec();
            padded.resize(size.try_into().unwrap(), 0);
            descriptors.extend(padded);
        }
        (header.concat().try_into().unwrap(), descriptors)
    }

    #[test]
    fn values_are_found_by_name() {
        let (header, descriptors) = file(48, &["halt_wait_ns", "blocking", "blocking_not", "halt_exits"]);
        let layout = Layout::parse(&header).unwrap();
        assert_eq!((layout.descriptors, layout.length), (72, 4 * 64));
        let places = layout.find(&descriptors);
        assert_eq!(
            places,
            Places {
                blocking: Some(1008),
                halt_exits: Some(1024),
            }
        );
        assert_eq!(layout.find(&descriptors[..64]), Places::default());
    }

    #[test]
    fn excessive_descriptors_are_rejected() {
        let (mut header, _) = file(48, &[]);
        header[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(Layout::parse(&header).is_none());
    }
}
