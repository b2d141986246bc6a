//! From the guest to the back end.

use std::io;

use super::backend::Sent;
use super::error::Error;
use super::features::sent_header;
use super::turn::{Batch, BatchEnd, MAX_PACKETS};
use super::{HEADER, MAX_PACKET, MIN_FRAME};
use crate::virtio::queue::chain::{Chain, ChainLimits, IoVecBuffer, MAX_IOVECS};

/// One entry of what `writev` and `sendmsg` take is left for what a back end puts before the frame.
const LIMITS: ChainLimits = ChainLimits {
    pieces: MAX_IOVECS - 1,
    ..ChainLimits::WIDEST
};

/// What has become of a packet.
enum Fate {
    /// It is done with, sent or dropped.
    Done,
    /// It is done with, and the back end takes no more.
    DoneFull,
    /// It stays in the queue.
    Kept(BatchEnd),
}

/// The transmitting half of the device.
#[derive(Default)]
pub(super) struct Transmitter {
    /// The rate limiter has let the next packet pass, but the back end has not taken it yet.
    permitted: bool,
}

impl Transmitter {
    /// Sends the driver's packets until there are none, or something is in the way.
    pub(super) fn process(&mut self, turn: &mut Batch<'_>) -> Result<BatchEnd, Error> {
        let memory = turn.memory;
        let mut chain = Chain::default();
        turn.ring.disable_notification(memory).map_err(Error::Queue)?;
        for _ in 0..MAX_PACKETS {
            let Some(descriptors) = turn.ring.pop_chain(memory).map_err(Error::Queue)? else {
                if turn.ring.enable_notification(memory).map_err(Error::Queue)? {
                    turn.ring.disable_notification(memory).map_err(Error::Queue)?;
                    continue;
                }
                return Ok(BatchEnd::Idle);
            };
            chain.refill(descriptors, memory, LIMITS).map_err(Error::Chain)?;
            if !chain.writable.is_empty() {
                return Err(Error::Direction(chain.head));
            }
            let fate = self.send(turn, &chain.readable)?;
            if let Fate::Kept(ended) = fate {
                turn.ring.undo_pop(1);
                return Ok(ended);
            }
            turn.ring
                .add_used(memory, &[(chain.head, 0)])
                .map_err(Error::Queue)?;
            if let Fate::DoneFull = fate {
                return Ok(BatchEnd::Full);
            }
        }
        Ok(BatchEnd::Exhausted)
    }

    fn send(&mut self, turn: &mut Batch<'_>, packet: &IoVecBuffer<'_>) -> Result<Fate, Error> {
        let length = usize::try_from(packet.len()).unwrap_or(usize::MAX);
        if !(HEADER + MIN_FRAME..=MAX_PACKET).contains(&length) {
            turn.counters.drops += 1;
            return Ok(Fate::Done);
        }
        let mut header = [0; HEADER];
        packet.read_exact(0, &mut header).map_err(Error::Chain)?;
        // This copy is all that counts from here on: the driver may change its own at any time.
        let Some(header) = sent_header(&header, length - HEADER, turn.features) else {
            turn.counters.drops += 1;
            return Ok(Fate::Done);
        };
        if !self.permitted && !turn.permits(length - HEADER) {
            return Ok(Fate::Kept(BatchEnd::Throttled));
        }
        self.permitted = false;
        match retried(|| turn.backend.send(&header, packet)) {
            Ok(sent) => {
                turn.passed(length - HEADER);
                Ok(match sent {
                    Sent::Whole => Fate::Done,
                    Sent::Partly => Fate::DoneFull,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.permitted = true;
                Ok(Fate::Kept(BatchEnd::Full))
            }
            Err(_) => {
                turn.counters.errors += 1;
                Ok(Fate::Done)
            }
        }
    }
}

/// Does `call` again when a signal has interrupted it.
fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
