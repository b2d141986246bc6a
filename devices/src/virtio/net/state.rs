//! What is kept of the network device in a snapshot.

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use super::MAX_PACKET;
use super::device::Net;
use crate::limiter::LimiterState;

/// The network device. Address and MTU belong to its specification, accepted features and queues to its transport; the
/// back end is the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
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
        // What came in up to now is the guest's; the time until it goes on is not.
        let now = self.setup.clock.now();
        Ok(NetState {
            held: self.receiver().held().to_vec(),
            receive_limiter: self.receive_limiter().state_at(now),
            transmit_limiter: self.transmit_limiter().state_at(now),
        })
    }

    fn restore(&mut self, state: NetState) -> Result<(), Error> {
        if state.held.len() > MAX_PACKET {
            return Err(Error::Invalid {
                component: NetState::NAME,
                reason: format!(
                    "a packet of {} bytes waits, where {MAX_PACKET} have room",
                    state.held.len()
                ),
            });
        }
        let now = self.setup.clock.now();
        for (limiter, state) in [
            (&mut self.setup.receive_limiter, state.receive_limiter),
            (&mut self.setup.transmit_limiter, state.transmit_limiter),
        ] {
            limiter.restore(state)?;
            limiter.fill(now);
        }
        self.receiver_mut().hold(&state.held);
        Ok(())
    }
}
