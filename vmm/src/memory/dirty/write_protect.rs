//! Asynchronous write-protection (Linux 6.7).

use std::io;
use std::ops::Range;

use crate::memory::map::Bytes;
use crate::memory::pagemap::{self, PageFilter, PageRanges, Pagemap};
use crate::memory::userfaultfd::{Access, REGISTER_WP, Userfaultfd, WP_ASYNC};

/// Reason why the kernel cannot write-protect pages.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel could not create a userfaultfd.
    #[error("cannot create a userfaultfd")]
    Create(#[source] io::Error),
    /// The kernel lacks asynchronous write-protection.
    #[error("cannot use asynchronous write-protection; it requires Linux 6.7 or later")]
    Features(#[source] io::Error),
    /// The kernel does not support write-protection for this memory.
    #[error("cannot register {size} of guest memory with a userfaultfd")]
    Register {
        /// Size of the memory.
        size: Bytes,
        /// Error of the ioctl.
        #[source]
        source: io::Error,
    },
    /// /proc is not mounted, or the kernel did not protect the pages.
    #[error(transparent)]
    Pages(#[from] pagemap::Error),
}

/// Write-protection of the pages that have not been written since the last snapshot. Belongs to the process that opened it.
#[derive(Debug)]
pub struct WriteProtect {
    userfaultfd: Userfaultfd,
    pagemap: Pagemap,
}

impl WriteProtect {
    /// Checks that the kernel supports write-protection, and opens the files of /proc, which may be unmounted later.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Features`] or [`Error::Pages`].
    pub fn open() -> Result<Self, Error> {
        let pagemap = Pagemap::open()?;
        // No fault is reported, also none of the kernel.
        let userfaultfd = Userfaultfd::open(Access::UserSpace).map_err(Error::Create)?;
        userfaultfd.negotiate(WP_ASYNC).map_err(Error::Features)?;
        Ok(Self { userfaultfd, pagemap })
    }

    /// Returns the pages at the host addresses `range` that were written since they were [protected](Self::protect): before, all
    /// private copies.
    pub fn ranges(&self, range: Range<u64>) -> PageRanges<'_> {
        self.pagemap.ranges(range, PageFilter::Written)
    }

    /// Protects the written pages at the host addresses `range`.
    ///
    /// # Errors
    /// [`Error::Register`] or [`Error::Pages`]; some pages may be protected then.
    pub fn protect(&self, range: Range<u64>) -> Result<(), Error> {
        // Registered late: the kernel maps pages of a registered file one by one, and combines no pages to huge ones. A repeated
        // registration has no effect.
        let registered = self.userfaultfd.register(range.clone(), REGISTER_WP);
        registered.map_err(|source| Error::Register {
            size: Bytes(range.end - range.start),
            source,
        })?;
        Ok(self.pagemap.protect(range)?)
    }
}
