//! Treatment of the addresses in frames.

use super::features::HEADER;
use super::rewriter::{AddressRewriter, DropReason, MAX_START};

/// Treatment of the addresses in frames, a type parameter of both queues: without a rewriter, they run code without a branch for it.
pub(super) trait AddressPolicy {
    /// Start of a packet from the guest that the device copies, checks and sends in place of the original.
    type TxStart: AsMut<[u8]>;
    /// Start of a packet to the guest that the device receives outside guest memory.
    type RxStart: AsMut<[u8]>;
    /// Empty start of a packet from the guest, at least [`HEADER`] bytes.
    const TX_START: Self::TxStart;
    /// Empty start of a packet to the guest.
    const RX_START: Self::RxStart;

    /// Rewrites the `start` of a packet of `length` bytes from the guest.
    ///
    /// # Errors
    /// The reason to drop the packet.
    fn rewrite_outbound(&self, start: &mut [u8], length: usize) -> Result<(), DropReason>;

    /// Rewrites the `start` of a packet of `length` bytes to the guest. Returns the MAC address of another host with the address
    /// of this guest, if the packet shows one.
    ///
    /// # Errors
    /// The reason to drop the packet.
    fn rewrite_inbound(&self, start: &mut [u8], length: usize) -> Result<Option<[u8; 6]>, DropReason>;
}

/// Addresses pass unchanged.
pub(super) struct Unchanged;

impl AddressPolicy for Unchanged {
    type TxStart = [u8; HEADER];
    type RxStart = [u8; 0];
    const TX_START: Self::TxStart = [0; HEADER];
    const RX_START: Self::RxStart = [];

    fn rewrite_outbound(&self, _start: &mut [u8], _length: usize) -> Result<(), DropReason> {
        Ok(())
    }

    fn rewrite_inbound(&self, _start: &mut [u8], _length: usize) -> Result<Option<[u8; 6]>, DropReason> {
        Ok(None)
    }
}

impl AddressPolicy for AddressRewriter {
    type TxStart = [u8; MAX_START];
    type RxStart = [u8; MAX_START];
    const TX_START: Self::TxStart = [0; MAX_START];
    const RX_START: Self::RxStart = [0; MAX_START];

    fn rewrite_outbound(&self, start: &mut [u8], length: usize) -> Result<(), DropReason> {
        Self::rewrite_outbound(self, start, length)
    }

    fn rewrite_inbound(&self, start: &mut [u8], length: usize) -> Result<Option<[u8; 6]>, DropReason> {
        Self::rewrite_inbound(self, start, length)
    }
}
