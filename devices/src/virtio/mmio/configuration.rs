//! When the configuration space has changed.

use serde::{Deserialize, Serialize};

use crate::virtio::device::VirtioDevice;

/// As many bytes of the configuration space as are watched: more than any device has.
const WATCHED: usize = 256;

/// The generation of the configuration space, with what it is the generation of.
///
/// A driver that reads several fields compares the generation before and after, section 4.2.2.1. A device changes its
/// configuration whenever it likes; what counts is what the driver can see of it, so it is compared at each access.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ConfigGeneration {
    generation: u32,
    /// Without the zeros at the end.
    seen: Vec<u8>,
}

impl ConfigGeneration {
    /// The generation of what `device` has there now.
    pub(super) fn generation(&mut self, device: &(impl VirtioDevice + ?Sized)) -> u32 {
        let mut bytes = [0; WATCHED];
        device.read_config(0, &mut bytes);
        let length = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let now = &bytes[..length];
        if self.seen != now {
            self.seen.clear();
            self.seen.extend_from_slice(now);
            self.generation = self.generation.wrapping_add(1);
        }
        self.generation
    }
}
