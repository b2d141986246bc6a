//! The state of the boot vCPU at the guest's first instruction.
//!
//! | module | holds |
//! |---|---|
//! | [`paging`] | the identity map of the first 4 GiB |
//! | [`registers`] | [`EntryState`]: general and special registers for each boot protocol |
//! | [`segments`] | the descriptor table and the segment registers loaded from it |

pub mod paging;
pub mod registers;
pub mod segments;

pub use registers::EntryState;
