//! From the back end to the guest.

use std::io;

use super::backend::{Link, Received};
use super::buffers::RxBuffers;
use super::error::Error;
use super::features::{GUEST_LARGE, MRG_RXBUF, is_whole, received_flags};
use super::turn::{Batch, BatchEnd, MAX_PACKETS};
use super::{HEADER, MAX_PACKET};

/// The longest packet of a driver that takes none longer than an MTU of 1500. Section 5.1.6.3.1, and a VLAN tag. Longer
/// ones, as on a tap with a larger MTU, are not lost, but take a copy.
const USUAL_PACKET: u64 = 1530;

/// After a packet longer than [`USUAL_PACKET`], so many more are expected to be.
const LARGE_RUN: u32 = 64;

/// After so many failures in a row the back end is left alone until it has something new: a failure that lasts would
/// otherwise keep the event loop.
const MAX_FAILURES: u32 = 16;

/// The receiving half of the device.
pub(super) struct Receiver {
    /// The back end may have packets: it has been ready since it last had none.
    readable: bool,
    /// A packet that waits for buffers or for the rate limiter, at the start; or what of a packet had no room.
    spare: Vec<u8>,
    /// Bytes of the packet that waits; 0 for none.
    held: usize,
    /// Packets for which there should be room for the longest one. The list of pieces for that, seventeen of a page,
    /// costs as much as a small packet does; without it, a large one takes a copy.
    large: u32,
    /// Failures of the back end since it last had a packet, or none.
    failures: u32,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            readable: false,
            // Zeroed memory of this size is not touched by allocating it, and seldom later.
            spare: vec![0; MAX_PACKET],
            held: 0,
            large: 0,
            failures: 0,
        }
    }

    /// The back end has something, or may have.
    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Whether a turn can do anything.
    pub(super) fn has_work(&self) -> bool {
        self.readable || self.held != 0
    }

    /// The packet that waits; empty for none.
    pub(super) fn held(&self) -> &[u8] {
        &self.spare[..self.held]
    }

    /// Makes `packet` the one that waits: at most [`MAX_PACKET`] bytes, or it is cut off; empty for none.
    pub(super) fn hold(&mut self, packet: &[u8]) {
        self.held = packet.len().min(self.spare.len());
        self.spare[..self.held].copy_from_slice(&packet[..self.held]);
    }

    /// Hands packets to the driver until there are none, or something is in the way.
    pub(super) fn process(&mut self, turn: &mut Batch<'_>) -> Result<BatchEnd, Error> {
        let mut buffers = RxBuffers::default();
        let ended = self.fill(turn, &mut buffers);
        turn.ring.undo_pop(buffers.count());
        ended
    }

    fn fill<'m>(&mut self, turn: &mut Batch<'m>, buffers: &mut RxBuffers<'m>) -> Result<BatchEnd, Error> {
        turn.ring
            .disable_notification(turn.memory)
            .map_err(Error::Queue)?;
        for _ in 0..MAX_PACKETS {
            buffers.top_up(turn.ring, turn.memory, self.wanted(turn.features))?;
            let ended = match buffers.is_empty() {
                true => lacks_buffers(turn)?,
                false => self.next(turn, buffers)?,
            };
            if let Some(ended) = ended {
                return Ok(ended);
            }
        }
        Ok(BatchEnd::Exhausted)
    }

    /// Bytes of buffers that are good to have before a packet is received.
    fn wanted(&self, features: u64) -> u64 {
        if features & MRG_RXBUF == 0 {
            // One buffer has to do.
            return 1;
        }
        let longest = match features & GUEST_LARGE != 0 && self.large > 0 {
            true => MAX_PACKET as u64,
            false => USUAL_PACKET,
        };
        longest.max(self.held as u64)
    }

    fn next<'m>(
        &mut self,
        turn: &mut Batch<'m>,
        buffers: &mut RxBuffers<'m>,
    ) -> Result<Option<BatchEnd>, Error> {
        if self.held != 0 {
            return self.deliver(turn, buffers);
        }
        let length = match turn.backend.receive(buffers, &mut self.spare) {
            Ok(Received::Spare(length)) => {
                self.failures = 0;
                self.held = length;
                return self.deliver(turn, buffers);
            }
            Ok(Received::Direct(length)) => length,
            Err(error) => return Ok(self.fail(turn, &error)),
        };
        self.failures = 0;
        self.large = match length as u64 > USUAL_PACKET {
            true => LARGE_RUN,
            false => self.large.saturating_sub(1),
        };
        let fits = length >= HEADER && length as u64 <= buffers.len();
        if fits {
            let start = buffers.start()?;
            let Some(flags) = flags(turn, start, length) else {
                turn.counters.drops += 1;
                return Ok(None);
            };
            if flags != start[0] {
                buffers.set_flags(flags)?;
            }
            if turn.permits(length - HEADER) {
                return Self::hand_over(turn, buffers, length);
            }
        }
        let filled = usize::try_from(buffers.len()).unwrap_or(usize::MAX).min(length);
        buffers.copy_to(&mut self.spare[..filled])?;
        self.held = length;
        match fits {
            true => Ok(Some(BatchEnd::Throttled)),
            false => self.deliver(turn, buffers),
        }
    }

    /// The back end has no packet, or fails; a failure need not be the last word on the packets behind.
    fn fail(&mut self, turn: &mut Batch<'_>, error: &io::Error) -> Option<BatchEnd> {
        match error.kind() {
            io::ErrorKind::Interrupted => return None,
            io::ErrorKind::WouldBlock => self.failures = 0,
            _ => {
                turn.counters.errors += 1;
                self.failures += 1;
                if turn.backend.link() == Link::Up && self.failures < MAX_FAILURES {
                    return None;
                }
                self.failures = 0;
            }
        }
        self.readable = false;
        Some(BatchEnd::Idle)
    }

    /// Hands over the packet that waits, if it may and can be; drops it if it never can.
    fn deliver<'m>(
        &mut self,
        turn: &mut Batch<'m>,
        buffers: &mut RxBuffers<'m>,
    ) -> Result<Option<BatchEnd>, Error> {
        let length = self.held;
        let start = [self.spare[0], self.spare[1]];
        let flags = (length >= HEADER).then(|| flags(turn, start, length)).flatten();
        let Some(flags) = flags else {
            self.held = 0;
            turn.counters.drops += 1;
            return Ok(None);
        };
        self.spare[0] = flags;
        if length as u64 > buffers.len() {
            let hopeless = turn.features & MRG_RXBUF == 0 || buffers.are_all(turn.ring);
            if hopeless {
                self.held = 0;
                turn.counters.drops += 1;
                return Ok(None);
            }
            return lacks_buffers(turn);
        }
        if !turn.permits(length - HEADER) {
            return Ok(Some(BatchEnd::Throttled));
        }
        buffers.copy_from(self.held())?;
        self.held = 0;
        Self::hand_over(turn, buffers, length)
    }

    /// Gives the packet that is in the buffers to the driver.
    fn hand_over<'m>(
        turn: &mut Batch<'m>,
        buffers: &mut RxBuffers<'m>,
        length: usize,
    ) -> Result<Option<BatchEnd>, Error> {
        buffers.add_used(turn.ring, turn.memory, length)?;
        turn.passed(length - HEADER);
        Ok(None)
    }
}

/// The flags for the driver of a packet of `length` bytes that starts with `start`; none if the driver must not get it.
/// Section 5.1.4.1 has it that one that knows the MTU gets nothing longer that is not to be cut up.
fn flags(turn: &Batch<'_>, start: [u8; 2], length: usize) -> Option<u8> {
    let too_long = length > HEADER + turn.longest && is_whole(start);
    received_flags(start, turn.features).filter(|_| !too_long)
}

/// Waits for the driver, unless buffers have come meanwhile.
fn lacks_buffers(turn: &mut Batch<'_>) -> Result<Option<BatchEnd>, Error> {
    match turn.ring.enable_notification(turn.memory).map_err(Error::Queue)? {
        true => {
            turn.ring
                .disable_notification(turn.memory)
                .map_err(Error::Queue)?;
            Ok(None)
        }
        false => Ok(Some(BatchEnd::Idle)),
    }
}
