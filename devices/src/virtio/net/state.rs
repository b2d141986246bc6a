//! What is kept of the network device in a snapshot.

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use super::LONGEST_PACKET;
use super::device::{Net, RECEIVE, TRANSMIT};
use crate::limiter::LimiterState;

/// Where the device goes on in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Index of the available ring that comes next.
    pub available: u16,
    /// Index of the used ring that comes next.
    pub used: u16,
}

/// The network device. Address and MTU belong to its specification, accepted features and queues to its transport; the
/// back end is the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Where the device goes on in the receive and in the transmit queue; none when it is not activated.
    pub positions: Option<[Position; 2]>,
    /// A received packet that waits for buffers or for the rate limiter, at most 65,566 bytes; empty for none.
    pub held: Vec<u8>,
    /// Rate limiter of the receive queue.
    pub receive_limiter: LimiterState,
    /// Rate limiter of the transmit queue.
    pub transmit_limiter: LimiterState,
}

impl Schema for NetState {
    const NAME: &'static str = "net";
    const VERSION: u32 = 1;
}

impl Persist for Net {
    type State = NetState;

    fn save(&self) -> Result<NetState, Error> {
        let position = |queue: usize| {
            self.position(queue)
                .map(|(available, used)| Position { available, used })
        };
        Ok(NetState {
            positions: position(RECEIVE)
                .zip(position(TRANSMIT))
                .map(|(receive, transmit)| [receive, transmit]),
            held: self.receiver().held().to_vec(),
            receive_limiter: self.receive_limiter().save()?,
            transmit_limiter: self.transmit_limiter().save()?,
        })
    }

    /// The transport activates the device with the queues as they were configured, before or after this; the positions
    /// hold for either order. The device looks at its queues as soon as the event loop runs.
    fn restore(&mut self, state: NetState) -> Result<(), Error> {
        if state.held.len() > LONGEST_PACKET {
            return Err(Error::Invalid {
                component: NetState::NAME,
                reason: format!(
                    "a packet of {} bytes waits, where {LONGEST_PACKET} have room",
                    state.held.len()
                ),
            });
        }
        self.receive_limiter_mut().restore(state.receive_limiter)?;
        self.transmit_limiter_mut().restore(state.transmit_limiter)?;
        self.receiver_mut().hold(&state.held);
        self.set_positions(state.positions);
        Ok(())
    }
}
