//! The file or block device behind a disk.
//!
//! | module | holds |
//! |---|---|
//! | `call` | system calls on it |
//! | `disk` | [`Disk`]: opening, reading, writing, flushing |
//! | `error` | [`enum@Error`]: why a file cannot be a disk |
//! | `hole` | discard and write-zeroes |
//! | `lock` | who else may use it meanwhile |

mod call;
mod disk;
mod error;
mod hole;
mod lock;

pub use disk::{Disk, DiskOptions, SECTOR};
pub use error::Error;
#[cfg(test)]
pub(super) use error::opening;
#[cfg(test)]
pub(super) use hole::inward;
