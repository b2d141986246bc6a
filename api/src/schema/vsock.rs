//! Vsock, which mayfly does not support. Some clients send an empty one for each VM.

use serde::Deserialize;

use super::field::{Off, Rule};
use super::macros::schema;

/// Reason of all unsupported vsock fields.
pub(super) const UNSUPPORTED: &str = "vsock is not part of mayfly";

schema! {
    /// Empty vsock. Unsupported otherwise.
    #[derive(Deserialize)]
    body Vsock {
        /// No effect. Deprecated.
        vsock_id: Option<String>;
    }
    unsupported {
        /// Unsupported.
        guest_cid => Rule::Unsupported(Off::Zero, UNSUPPORTED);
        /// Unsupported.
        uds_path => Rule::Unsupported(Off::Text(&[""]), UNSUPPORTED);
    }
    example "{guest_cid: 0, uds_path: '', vsock_id: ''}";
}
