//! What can go wrong with served memory.

use std::io;
use std::path::PathBuf;

use crate::memory::{self, Bytes};

/// Why a handler cannot fill the guest's memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no address space.
    #[error("cannot reserve the memory that a page fault handler is to fill")]
    Memory(#[source] memory::Error),
    /// This process may not have a userfaultfd.
    #[error(
        "a userfaultfd is not permitted; give access to /dev/userfaultfd, or the capability CAP_SYS_PTRACE, or set sysctl \
         vm.unprivileged_userfaultfd=1"
    )]
    NotPermitted(#[source] io::Error),
    /// The kernel gave no userfaultfd.
    #[error(
        "cannot make a userfaultfd; the kernel needs CONFIG_USERFAULTFD, and a system call filter must let it through"
    )]
    Create(#[source] io::Error),
    /// The kernel does not report what is needed.
    #[error("the kernel's userfaultfd does not report removed pages; Linux 4.11 or later is needed")]
    Features(#[source] io::Error),
    /// The kernel does not report touches of this memory.
    #[error("cannot register {size} of guest memory with a userfaultfd")]
    Register {
        /// Size of the region.
        size: Bytes,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Nobody listens.
    #[error(
        "cannot connect to the page fault handler at {path:?}; it must listen there before the snapshot is loaded"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The message did not go out, or not as a whole.
    #[error("cannot tell the page fault handler at {path:?} of the guest's memory")]
    Send {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
