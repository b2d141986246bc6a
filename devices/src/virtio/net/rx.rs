//! Receive queue: packets from the backend to the guest.

use std::io;

use super::addresses::AddressPolicy;
use super::backend::{Link, Received};
use super::buffers::{Error, RxBuffers};
use super::features::{GUEST_LARGE, HEADER, MAX_PACKET, MRG_RXBUF, is_unsegmented, rx_flags};
use super::first_frames::{FirstFrames, complete_checksum};
use super::metrics::Recorder;
use super::rewriter::MAX_START;
use super::tx::{Batch, BatchEnd, MAX_PACKETS};

/// Maximum packet length with an MTU of 1500 and a VLAN tag (virtio 1.2 §5.1.6.3.1). Longer packets, as on a
/// tap with a larger MTU, need a copy.
const MTU_PACKET: u64 = 1530;

/// Number of packets after one longer than [`MTU_PACKET`] for which the buffers hold the maximum length.
const LARGE_PACKETS: u32 = 64;

/// Maximum number of consecutive failures before the device waits for the next event of the backend. A
/// permanent failure would otherwise keep the event loop busy.
const MAX_FAILURES: u32 = 16;

/// Receive side of the device.
pub(super) struct Receiver {
    /// The backend may have packets: it was ready since it last had none.
    readable: bool,
    /// Held packet at the start, or the bytes of a packet beyond the receive buffers.
    spare: Vec<u8>,
    /// Bytes of the held packet; 0 for none.
    held: usize,
    /// Packets before those of the backend.
    first: FirstFrames,
    /// The held packet is a copy of the first of `first`.
    holds_first: bool,
    /// Packets for which the buffers should hold the maximum length. The list of seventeen iovecs for it costs
    /// as much as a small packet; without that list, a large packet needs a copy.
    large: u32,
    /// Failures of the backend since its last packet or empty read.
    failures: u32,
    /// MAC address of another host with the address of this guest, found since the last call of
    /// [`take_claimant`](Self::take_claimant).
    claimant: Option<[u8; 6]>,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            readable: false,
            // The kernel provides pages of a zeroed allocation of this size on first access, which is rare
            // here.
            spare: vec![0; MAX_PACKET],
            held: 0,
            first: FirstFrames::default(),
            holds_first: false,
            large: 0,
            failures: 0,
            claimant: None,
        }
    }

    /// Marks the backend as possibly readable.
    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Returns true if a batch can make progress.
    pub(super) fn has_work(&self) -> bool {
        self.readable || self.held != 0 || !self.first.is_empty()
    }

    /// Returns the held packet of the backend; empty for none.
    pub(super) fn held(&self) -> &[u8] {
        match self.holds_first {
            true => &[],
            false => &self.spare[..self.held],
        }
    }

    /// Holds `packet` of the backend, truncated to [`MAX_PACKET`] bytes; empty for none. First frames stay.
    pub(super) fn hold(&mut self, packet: &[u8]) {
        self.holds_first = false;
        self.held = packet.len().min(self.spare.len());
        self.spare[..self.held].copy_from_slice(&packet[..self.held]);
    }

    /// Returns the first frames that the driver has not received.
    pub(super) fn first_frames(&self) -> &FirstFrames {
        &self.first
    }

    /// Sets the first frames. Drops those of a network that the rewriter drops, and computes checksums.
    pub(super) fn set_first_frames<A: AddressPolicy>(
        &mut self,
        mut frames: FirstFrames,
        addresses: &A,
        counters: &Recorder,
    ) {
        let claimant = &mut self.claimant;
        frames.retain(|packet| {
            let length = packet.len();
            let start = &mut packet[..length.min(MAX_START)];
            let is_kept = rewrite(addresses, start, length, counters, claimant);
            if is_kept {
                complete_checksum(packet);
            }
            is_kept
        });
        self.first = frames;
    }

    /// Inserts first frames of a saved state before those of this load. Returns the number of frames of this load that exceed the
    /// limits, and are dropped.
    pub(super) fn restore_first_frames(&mut self, mut saved: FirstFrames) -> usize {
        let excess = saved.append(std::mem::take(&mut self.first));
        self.first = saved;
        excess
    }

    /// Holds the first of the first frames, unless a packet is held.
    fn hold_first(&mut self) {
        if let (0, Some(packet)) = (self.held, self.first.first()) {
            self.held = packet.len();
            self.spare[..packet.len()].copy_from_slice(packet);
            self.holds_first = true;
        }
    }

    /// Removes the held packet, and holds the next of the first frames.
    fn release_held(&mut self) {
        self.held = 0;
        if std::mem::take(&mut self.holds_first) {
            self.first.remove_first();
        }
        self.hold_first();
    }

    /// Returns the MAC address of another host with the address of this guest, if one was found since the last call.
    pub(super) fn take_claimant(&mut self) -> Option<[u8; 6]> {
        self.claimant.take()
    }

    /// Passes packets to the driver until there are none, or a limit ends the batch.
    pub(super) fn process<A: AddressPolicy>(
        &mut self,
        batch: &mut Batch<'_>,
        addresses: &A,
    ) -> Result<BatchEnd, Error> {
        self.hold_first();
        let mut buffers = RxBuffers::default();
        let end = self.process_packets(batch, &mut buffers, addresses);
        batch.queue.undo_pop(buffers.count());
        end
    }

    fn process_packets<'m, A: AddressPolicy>(
        &mut self,
        batch: &mut Batch<'m>,
        buffers: &mut RxBuffers<'m>,
        addresses: &A,
    ) -> Result<BatchEnd, Error> {
        batch
            .queue
            .disable_notification(batch.memory)
            .map_err(Error::Queue)?;
        // Once per batch: each packet overwrites what is read of it.
        let mut start = A::RX_START;
        for _ in 0..MAX_PACKETS {
            buffers.top_up(batch.queue, batch.memory, self.wanted_bytes(batch.features))?;
            let end = match buffers.is_empty() {
                true => wait_for_buffers(batch)?,
                false => self.receive_packet(batch, buffers, addresses, start.as_mut())?,
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
        Ok(BatchEnd::Exhausted)
    }

    /// Returns the bytes of buffers to pop before a packet is received.
    fn wanted_bytes(&self, features: u64) -> u64 {
        if features & MRG_RXBUF == 0 {
            // Without MRG_RXBUF, a packet uses one buffer (virtio 1.2 §5.1.6.4).
            return 1;
        }
        let target = match features & GUEST_LARGE != 0 && self.large > 0 {
            true => MAX_PACKET as u64,
            false => MTU_PACKET,
        };
        target.max(self.held as u64)
    }

    fn receive_packet<'m, A: AddressPolicy>(
        &mut self,
        batch: &mut Batch<'m>,
        buffers: &mut RxBuffers<'m>,
        addresses: &A,
        start: &mut [u8],
    ) -> Result<Option<BatchEnd>, Error> {
        if self.held != 0 {
            return self.deliver_held(batch, buffers);
        }
        let length = match batch.backend.receive(start, buffers, &mut self.spare) {
            Ok(Received::Spare(length)) => {
                self.failures = 0;
                let start = &mut self.spare[..length.min(MAX_START)];
                if !rewrite(addresses, start, length, batch.counters, &mut self.claimant) {
                    return Ok(None);
                }
                self.held = length;
                return self.deliver_held(batch, buffers);
            }
            Ok(Received::Direct(length)) => length,
            Err(error) => return Ok(self.handle_error(batch, &error)),
        };
        self.failures = 0;
        let start_length = start.len().min(length);
        let start = &mut start[..start_length];
        if !rewrite(addresses, start, length, batch.counters, &mut self.claimant) {
            return Ok(None);
        }
        self.deliver_direct(batch, buffers, start, length)
    }

    /// Delivers the packet of `length` bytes in the buffers, except its `start`, or holds it.
    // Inlined for both address policies: one of them has no `start`.
    #[inline(always)]
    fn deliver_direct<'m>(
        &mut self,
        batch: &mut Batch<'m>,
        buffers: &mut RxBuffers<'m>,
        start: &mut [u8],
        length: usize,
    ) -> Result<Option<BatchEnd>, Error> {
        self.large = match length as u64 > MTU_PACKET {
            true => LARGE_PACKETS,
            false => self.large.saturating_sub(1),
        };
        let fits = length >= HEADER && length as u64 <= buffers.len();
        if fits {
            let first = match start {
                [flags, kind, ..] => [*flags, *kind],
                _ => buffers.flags_and_type()?,
            };
            let Some(flags) = checked_flags(batch, first, length) else {
                batch.counters.drops.add(1);
                return Ok(None);
            };
            match start.first_mut() {
                Some(first) => *first = flags,
                None if flags != first[0] => buffers.set_flags(flags)?,
                None => {}
            }
            if batch.try_consume(length - HEADER) {
                return Self::add_used(batch, buffers, start, length);
            }
        }
        let filled = usize::try_from(buffers.len()).unwrap_or(usize::MAX).min(length);
        buffers.copy_to(&mut self.spare[..filled])?;
        self.spare[..start.len()].copy_from_slice(start);
        self.held = length;
        match fits {
            true => Ok(Some(BatchEnd::Throttled)),
            false => self.deliver_held(batch, buffers),
        }
    }

    /// Handles an error of the backend. Later packets can still succeed, so most errors do not end the batch.
    fn handle_error(&mut self, batch: &mut Batch<'_>, error: &io::Error) -> Option<BatchEnd> {
        match error.kind() {
            io::ErrorKind::Interrupted => return None,
            io::ErrorKind::WouldBlock => self.failures = 0,
            _ => {
                batch.counters.errors.add(1);
                self.failures += 1;
                if batch.backend.link() == Link::Up && self.failures < MAX_FAILURES {
                    return None;
                }
                self.failures = 0;
            }
        }
        self.readable = false;
        Some(BatchEnd::Idle)
    }

    /// Delivers the held packet, or drops it if it can never fit.
    fn deliver_held<'m>(
        &mut self,
        batch: &mut Batch<'m>,
        buffers: &mut RxBuffers<'m>,
    ) -> Result<Option<BatchEnd>, Error> {
        let length = self.held;
        let start = [self.spare[0], self.spare[1]];
        let flags = (length >= HEADER)
            .then(|| checked_flags(batch, start, length))
            .flatten();
        let Some(flags) = flags else {
            self.release_held();
            batch.counters.drops.add(1);
            return Ok(None);
        };
        self.spare[0] = flags;
        if length as u64 > buffers.len() {
            let never_fits = batch.features & MRG_RXBUF == 0 || buffers.is_exhausted(batch.queue);
            if never_fits {
                self.release_held();
                batch.counters.drops.add(1);
                return Ok(None);
            }
            return wait_for_buffers(batch);
        }
        if !batch.try_consume(length - HEADER) {
            return Ok(Some(BatchEnd::Throttled));
        }
        let delivered = Self::add_used(batch, buffers, &mut self.spare[..length], length);
        self.release_held();
        delivered
    }

    /// Adds the packet of `length` bytes in the buffers, except its `start`, to the used ring.
    fn add_used<'m>(
        batch: &mut Batch<'m>,
        buffers: &mut RxBuffers<'m>,
        start: &mut [u8],
        length: usize,
    ) -> Result<Option<BatchEnd>, Error> {
        batch.counters.activity.count(length, |head| {
            let copied = start.len().min(head.len());
            let is_read = buffers.copy_to(head).is_ok();
            head[..copied].copy_from_slice(&start[..copied]);
            is_read
        });
        buffers.add_used(batch.queue, batch.memory, start, length)?;
        batch.count_packet(length - HEADER);
        Ok(None)
    }
}

/// Rewrites the `start` of a packet of `length` bytes. Returns false if the packet is dropped.
fn rewrite<A: AddressPolicy>(
    addresses: &A,
    start: &mut [u8],
    length: usize,
    counters: &Recorder,
    claimant: &mut Option<[u8; 6]>,
) -> bool {
    match addresses.rewrite_inbound(start, length) {
        Ok(None) => true,
        Ok(found) => {
            *claimant = found;
            counters.address_conflicts.add(1);
            true
        }
        Err(reason) => {
            counters.address_drops.add(reason);
            false
        }
    }
}

/// Returns the flags of a packet of `length` bytes that starts with `start`; `None` if the driver must not
/// receive it. Virtio 1.2 §5.1.4.1 forbids unsegmented packets longer than the negotiated MTU.
fn checked_flags(batch: &Batch<'_>, start: [u8; 2], length: usize) -> Option<u8> {
    let too_long = length > HEADER + batch.max_frame && is_unsegmented(start);
    rx_flags(start, batch.features).filter(|_| !too_long)
}

/// Enables notifications and ends the batch, unless the driver has added buffers meanwhile.
fn wait_for_buffers(batch: &mut Batch<'_>) -> Result<Option<BatchEnd>, Error> {
    match batch
        .queue
        .enable_notification(batch.memory)
        .map_err(Error::Queue)?
    {
        true => {
            batch
                .queue
                .disable_notification(batch.memory)
                .map_err(Error::Queue)?;
            Ok(None)
        }
        false => {
            batch.counters.empty_batches.add(1);
            Ok(Some(BatchEnd::Idle))
        }
    }
}
