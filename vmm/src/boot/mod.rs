//! Image formats and boot protocols.

use std::ops::Range;

/// How a guest is entered, and what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 64-bit Linux protocol: long mode, `boot_params` in RSI.
    Linux,
    /// PVH: 32-bit protected mode, `hvm_start_info` in EBX.
    Pvh,
    /// Multiboot 1: 32-bit protected mode, magic in EAX, information in EBX.
    Multiboot,
}

/// An image that has been loaded, as the architecture needs it to prepare the guest's entry.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// How the guest is entered.
    pub protocol: Protocol,
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// End of the highest segment, BSS included.
    pub end: u64,
    /// A bzImage's setup header: the bytes of the file from 0x1f1 to the end of the header.
    pub setup_header: Option<Vec<u8>>,
    /// Where the initrd is.
    pub initrd: Option<Range<u64>>,
}
