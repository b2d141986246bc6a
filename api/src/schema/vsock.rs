//! A vsock, which mayfly does not have. Some clients always send an empty one.

use serde::Deserialize;

use super::{Field, Off, Schema};

const WHY: &str = "vsock is not part of mayfly";

/// A vsock that is none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Vsock {
    /// Name of it that Firecracker does not use any more.
    pub vsock_id: Option<String>,
}

impl Schema for Vsock {
    const NAME: &'static str = "Vsock";
    const FIELDS: &'static [Field] = &[
        Field::unsupported("guest_cid", Off::Zero, WHY),
        Field::unsupported("uds_path", Off::Text(&[""]), WHY),
        Field::any("vsock_id"),
    ];
}
