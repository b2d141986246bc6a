//! How often, and why, vCPUs have left the guest.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::VcpuExit;

/// Why a vCPU has left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum Kind {
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Halt,
    Interrupt,
    Other,
}

/// Names of the kinds, in their order.
pub const KINDS: [&str; 7] = [
    "io_in",
    "io_out",
    "mmio_read",
    "mmio_write",
    "halt",
    "interrupt",
    "other",
];

/// Counts the exits of one vCPU. Only its own thread writes.
#[derive(Debug, Default)]
pub struct ExitCounters([AtomicU64; KINDS.len()]);

impl ExitCounters {
    /// The counts so far, in the order of [`KINDS`].
    pub fn counts(&self) -> [u64; KINDS.len()] {
        std::array::from_fn(|kind| self.0[kind].load(Ordering::Relaxed))
    }

    pub(super) fn count(&self, exit: &Result<VcpuExit<'_>, kvm_ioctls::Error>) {
        let kind = match exit {
            Ok(VcpuExit::IoIn(..)) => Kind::IoIn,
            Ok(VcpuExit::IoOut(..)) => Kind::IoOut,
            Ok(VcpuExit::MmioRead(..)) => Kind::MmioRead,
            Ok(VcpuExit::MmioWrite(..)) => Kind::MmioWrite,
            Ok(VcpuExit::Hlt) => Kind::Halt,
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) | Err(_) => Kind::Interrupt,
            Ok(_) => Kind::Other,
        };
        let counter = &self.0[kind as usize];
        // There is one writer, so that this needs no locked instruction.
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::VcpuExit;

    use super::{ExitCounters, KINDS};

    #[test]
    fn each_kind_has_its_counter() {
        let exits = ExitCounters::default();
        exits.count(&Ok(VcpuExit::IoOut(1, &[0])));
        exits.count(&Ok(VcpuExit::Hlt));
        exits.count(&Ok(VcpuExit::Hlt));
        exits.count(&Ok(VcpuExit::Shutdown));
        exits.count(&Err(kvm_ioctls::Error::new(libc::EINTR)));
        let named: Vec<_> = KINDS
            .into_iter()
            .zip(exits.counts())
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(
            named,
            [("io_out", 1), ("halt", 2), ("interrupt", 1), ("other", 1)]
        );
    }
}
