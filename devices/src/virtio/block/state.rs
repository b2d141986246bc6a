//! What is kept of a block device in a snapshot.

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use super::device::Block;
use crate::limiter::LimiterState;

/// State of a [`Block`]. Queue and features are the transport's to keep; the contents of the disk are nobody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    limiter: LimiterState,
    /// Bytes of the disk as the driver knows them.
    size: u64,
}

impl Schema for BlockState {
    const NAME: &'static str = "virtio-block";
    const VERSION: u32 = 2;
}

impl Persist for Block {
    type State = BlockState;

    /// [`Block::drain`] comes before: a request in flight cannot be saved.
    fn save(&self) -> Result<BlockState, Error> {
        match self.in_flight() {
            0 => Ok(BlockState {
                limiter: self.limiter_state(),
                size: self.reported_capacity(),
            }),
            count => Err(Error::Invalid {
                component: BlockState::NAME,
                reason: format!("{count} requests are in flight"),
            }),
        }
    }

    /// A request that was put off is still in the queue, which is looked at by the event loop; there, the driver is also told
    /// when its disk has another size now.
    fn restore(&mut self, state: BlockState) -> Result<(), Error> {
        self.restore_limiter(state.limiter)?;
        self.set_told(state.size);
        Ok(())
    }
}
