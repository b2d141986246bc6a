//! Transmit queue: packets from the guest to the backend; and the batch, which both queues use.

use std::io;
use std::time::Duration;

use snapshot::GuestMemory;

use super::addresses::AddressPolicy;
use super::backend::{Backend, Sent};
use super::buffers::Error;
use super::features::{HEADER, MAX_PACKET, MIN_FRAME, tx_header};
use super::metrics::Recorder;
use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::virtio::queue::Virtqueue;
use crate::virtio::queue::chain::{Chain, ChainLimits, IoVecBuffer, MAX_IOVECS};

/// Sampling interval: one of this many sent packets is timed.
const SAMPLE: u64 = 16;

/// Maximum number of packets in one batch.
pub(super) const MAX_PACKETS: usize = 512;

/// Context of one batch of packets of one queue.
pub(super) struct Batch<'a> {
    /// Negotiated features.
    pub(super) features: u64,
    /// Maximum length in bytes of an unsegmented frame to the driver.
    pub(super) max_frame: usize,
    pub(super) memory: &'a GuestMemory,
    pub(super) queue: &'a mut Virtqueue,
    pub(super) backend: &'a mut dyn Backend,
    pub(super) limiter: &'a mut Limiter,
    pub(super) clock: &'a dyn Clock,
    pub(super) counters: &'a Recorder,
}

/// Reason for the end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchEnd {
    /// No work remains until the driver or the backend signals more.
    Idle,
    /// The rate limiter throttles the queue; its timer continues it.
    Throttled,
    /// The backend accepts no more packets until it is writable.
    Full,
    /// The batch limit is reached and packets may remain.
    Exhausted,
}

impl Batch<'_> {
    /// Consumes tokens for a frame of `bytes`. Returns false if the rate limiter throttles the queue.
    pub(super) fn try_consume(&mut self, bytes: usize) -> bool {
        let now = match self.limiter.has_limit() {
            true => self.clock.now(),
            false => Duration::ZERO,
        };
        let has_tokens = self.limiter.consume(bytes as u64, now);
        self.counters.throttled.add(u64::from(!has_tokens));
        has_tokens
    }

    /// Returns the start time of the next packet if it is timed: two clock reads cost as much as a tenth of a packet.
    fn start_timer(&self) -> Option<Duration> {
        self.counters
            .packets
            .get()
            .is_multiple_of(SAMPLE)
            .then(|| self.clock.now())
    }

    /// Records the duration of a sent packet that started at `start`.
    fn stop_timer(&self, start: Option<Duration>) {
        if let Some(start) = start {
            let elapsed = self.clock.now().saturating_sub(start);
            self.counters.duration.record(elapsed);
        }
    }

    /// Counts a transferred frame of `bytes`.
    pub(super) fn count_packet(&mut self, bytes: usize) {
        self.counters.packets.add(1);
        self.counters.bytes.add(bytes as u64);
    }
}

/// `writev` and `sendmsg` take at most [`MAX_IOVECS`] entries; one is reserved for data of the backend before
/// the frame.
const LIMITS: ChainLimits = ChainLimits {
    iovecs: MAX_IOVECS - 1,
    ..ChainLimits::WIDEST
};

/// Outcome for one packet.
enum PacketOutcome {
    /// The packet was sent or dropped.
    Done,
    /// The packet was sent, and the backend accepts no more.
    DoneFull,
    /// The packet stays in the queue.
    Kept(BatchEnd),
}

/// Transmit side of the device.
#[derive(Default)]
pub(super) struct Transmitter {
    /// The next packet has consumed its tokens, but the backend has not accepted it yet.
    has_tokens: bool,
}

impl Transmitter {
    /// Sends the driver's packets until there are none, or a limit ends the batch.
    pub(super) fn process<A: AddressPolicy>(
        &mut self,
        batch: &mut Batch<'_>,
        addresses: &A,
    ) -> Result<BatchEnd, Error> {
        let memory = batch.memory;
        let mut chain = Chain::default();
        // Once per batch: each packet overwrites what is used of it.
        let mut start = A::TX_START;
        batch.queue.disable_notification(memory).map_err(Error::Queue)?;
        for packet in 0..MAX_PACKETS {
            let Some(descriptors) = batch.queue.pop_chain(memory).map_err(Error::Queue)? else {
                if batch.queue.enable_notification(memory).map_err(Error::Queue)? {
                    batch.queue.disable_notification(memory).map_err(Error::Queue)?;
                    continue;
                }
                batch.counters.empty_batches.add(u64::from(packet == 0));
                return Ok(BatchEnd::Idle);
            };
            chain.refill(descriptors, memory, LIMITS).map_err(Error::Chain)?;
            if !chain.writable.is_empty() {
                return Err(Error::Direction(chain.head));
            }
            let outcome = self.send(batch, &chain.readable, addresses, start.as_mut())?;
            if let PacketOutcome::Kept(end) = outcome {
                batch.queue.undo_pop(1);
                return Ok(end);
            }
            batch
                .queue
                .add_used(memory, &[(chain.head, 0)])
                .map_err(Error::Queue)?;
            if let PacketOutcome::DoneFull = outcome {
                return Ok(BatchEnd::Full);
            }
        }
        Ok(BatchEnd::Exhausted)
    }

    fn send<A: AddressPolicy>(
        &mut self,
        batch: &mut Batch<'_>,
        packet: &IoVecBuffer<'_>,
        addresses: &A,
        start: &mut [u8],
    ) -> Result<PacketOutcome, Error> {
        let length = usize::try_from(packet.len()).unwrap_or(usize::MAX);
        if !(HEADER + MIN_FRAME..=MAX_PACKET).contains(&length) {
            batch.counters.drops.add(1);
            return Ok(PacketOutcome::Done);
        }
        let copied = start.len().min(length);
        let start = &mut start[..copied];
        packet.read_exact(0, start).map_err(Error::Chain)?;
        // Only this copy is used from here on: the driver may change its own headers at any time.
        let header = start.first_chunk_mut::<HEADER>();
        let checked = header.and_then(|header| {
            *header = tx_header(header, length - HEADER, batch.features)?;
            Some(())
        });
        if checked.is_none() {
            batch.counters.drops.add(1);
            return Ok(PacketOutcome::Done);
        }
        if let Err(reason) = addresses.rewrite_outbound(start, length) {
            batch.counters.address_drops.add(reason);
            return Ok(PacketOutcome::Done);
        }
        if !self.has_tokens && !batch.try_consume(length - HEADER) {
            return Ok(PacketOutcome::Kept(BatchEnd::Throttled));
        }
        self.has_tokens = false;
        let started_at = batch.start_timer();
        match retry_interrupted(|| batch.backend.send(start, packet)) {
            Ok(sent) => {
                batch.stop_timer(started_at);
                batch.count_packet(length - HEADER);
                batch.counters.activity.count(length, |head| {
                    let copied = start.len().min(head.len());
                    let is_read = packet.read_exact(0, head).is_ok();
                    head[..copied].copy_from_slice(&start[..copied]);
                    is_read
                });
                Ok(match sent {
                    Sent::Complete => PacketOutcome::Done,
                    Sent::Partial => PacketOutcome::DoneFull,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.has_tokens = true;
                Ok(PacketOutcome::Kept(BatchEnd::Full))
            }
            Err(_) => {
                batch.counters.errors.add(1);
                Ok(PacketOutcome::Done)
            }
        }
    }
}

/// Repeats `call` while a signal interrupts it.
fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
