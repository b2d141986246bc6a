//! Pages of guest memory that were written since the last snapshot.
//!
//! Only a VM with dirty page tracking has a [`DirtyTracker`]. It sees the writes of the guest, of KVM, of this process, and of the
//! kernel in system calls of this process, by one of two sources:
//!
//! - [`WriteProtect`]: the kernel write-protects the pages of a snapshot, and removes the protection of a page at its next write. It
//!   costs nothing until the first snapshot, and allocates no memory.
//! - KVM's dirty log for the guest and KVM, and [`HostWrites`](snapshot::HostWrites) for this process. It serves memory of a fault
//!   handler, whose userfaultfd admits no other, kernels before 6.7, and hosts without /proc.
//!
//! Pages stay dirty until [`clear`](DirtyTracker::clear), which follows a complete snapshot: a failed snapshot loses none. After a
//! failed clear, pages of the snapshot are still dirty, and the next diff holds them once more.

#[cfg(test)]
mod tests;
mod write_protect;

use std::ops::Range;

use snapshot::{GuestMemory, GuestRegion};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::map::host_range;
use super::pagemap;
use crate::error_chain::ErrorChain;
use crate::kvm;
pub use write_protect::{Error as WriteProtectError, WriteProtect};

/// Error while dirty pages are listed or cleared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM returned no dirty log.
    #[error("cannot read the dirty log of guest memory")]
    Log(#[source] kvm::Error),
    /// The kernel did not list or write-protect the pages.
    #[error("cannot track the pages of guest memory")]
    WriteProtect(#[source] WriteProtectError),
}

/// Takes the pages that were written since the last call from KVM's dirty log: of the memory slot with a number and a size in bytes,
/// a bit for each.
pub type TakeLog<'a> = &'a dyn Fn(u32, usize) -> Result<Vec<u64>, kvm::Error>;

/// Source of the dirty pages of one guest memory.
#[derive(Debug)]
pub enum DirtyTracker {
    /// Asynchronous write-protection.
    WriteProtect(WriteProtect),
    /// KVM's dirty log, and a log of the writes of this process.
    Log,
}

impl DirtyTracker {
    /// Selects the source for the memory of a new VM, which a fault handler serves or not.
    pub fn select(is_served: bool) -> Self {
        if is_served {
            return Self::Log;
        }
        WriteProtect::open().map_or_else(
            |error| {
                log::info!("dirty pages are read from the log of KVM: {}", ErrorChain(&error));
                Self::Log
            },
            Self::WriteProtect,
        )
    }

    /// Returns true if memory and memory slots require logs.
    pub fn needs_log(&self) -> bool {
        matches!(self, Self::Log)
    }

    /// Adds the pages of KVM's log to the log of this process. [`ranges`](Self::ranges) requires this call. No thread may write `memory`
    /// in between.
    ///
    /// # Errors
    /// [`Error::Log`]; no page is lost.
    pub fn collect(&self, memory: &GuestMemory, take: TakeLog<'_>) -> Result<(), Error> {
        if let Self::WriteProtect(_) = self {
            return Ok(());
        }
        for (slot, region) in (0..).zip(memory.iter()) {
            let taken = take(slot, region.size()).map_err(Error::Log)?;
            if let Some(log) = region.bitmap().log() {
                log.merge(&taken);
            }
        }
        Ok(())
    }

    /// Returns the dirty pages of `region` as sorted, page-aligned offsets. Two ranges may be adjacent.
    pub fn ranges<'a>(
        &'a self,
        region: &'a GuestRegion,
    ) -> Box<dyn Iterator<Item = Result<Range<u64>, pagemap::Error>> + 'a> {
        let host = host_range(region);
        match self {
            Self::WriteProtect(protect) => Box::new(protect.ranges(host.clone()).map(move |range| {
                let range = range?;
                Ok(range.start - host.start..range.end - host.start)
            })),
            Self::Log => {
                let log = region.bitmap().log();
                let size = region.len();
                let ranges = log.into_iter().flat_map(|log| log.ranges());
                Box::new(ranges.map(move |range| Ok(range.start..range.end.min(size))))
            }
        }
    }

    /// Makes all pages of `memory` clean, after a complete snapshot of them. No thread may write the memory since it was dumped.
    ///
    /// # Errors
    /// [`Error`]; pages may still be dirty then.
    pub fn clear(&self, memory: &GuestMemory, take: TakeLog<'_>) -> Result<(), Error> {
        for (slot, region) in (0..).zip(memory.iter()) {
            match self {
                Self::WriteProtect(protect) => {
                    protect.protect(host_range(region)).map_err(Error::WriteProtect)?;
                }
                Self::Log => {
                    take(slot, region.size()).map_err(Error::Log)?;
                    if let Some(log) = region.bitmap().log() {
                        log.clear();
                    }
                }
            }
        }
        Ok(())
    }
}
