//! Bodies of requests and answers, as Firecracker's specification names their fields.
//!
//! serde knows their types; [`Schema::FIELDS`] knows the rest: the limits, and what becomes of a field that mayfly does
//! not have. `resources/openapi.yaml` says the same, and a test compares them.

mod action;
mod boot;
mod drive;
mod field;
mod limiter;
mod machine;
mod network;
mod output;
mod snapshot;
mod vm_config;
mod vsock;

#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use action::{Action, ActionType, VmState, VmUpdate};
pub use boot::{BootSource, DEFAULT_BOOT_ARGS};
pub use drive::{CacheType, Drive, DriveUpdate, IoEngine};
pub use field::{Field, Off, Rule};
pub use limiter::{RateLimiter, TokenBucket};
pub use machine::{HugePages, MachineConfiguration, MachineConfigurationUpdate};
pub use network::{NetworkInterface, NetworkInterfaceUpdate};
pub use output::{Logger, Metrics, Serial};
pub use snapshot::{
    BackendType, DriveOverride, MemBackend, NetworkOverride, RecordWorkingSet, SnapshotCreate, SnapshotLoad,
    SnapshotType,
};
pub use vm_config::{InstanceInfo, Version, VmConfiguration};
pub use vsock::Vsock;

/// The body of a request.
pub trait Schema: DeserializeOwned {
    /// What the specification calls it.
    const NAME: &'static str;
    /// Every field that some Firecracker knows.
    const FIELDS: &'static [Field];
}

/// Why a body was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no JSON, or not the JSON that is wanted. The text is serde's.
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(String),
    /// A number is too small or too large.
    #[error("Invalid {field}: {value} is not in the range from {min} to {max}.")]
    Range {
        /// Names that lead to the field, with points between them.
        field: String,
        /// What it was given.
        value: u64,
        /// Least number.
        min: u64,
        /// Greatest number.
        max: u64,
    },
    /// A field of Firecracker's that is not off.
    #[error("The field {field} cannot be {value}: {why}.")]
    Unsupported {
        /// Names that lead to the field, with points between them.
        field: String,
        /// What it was given, cut short.
        value: String,
        /// What mayfly has instead.
        why: &'static str,
    },
}

/// Reads a body. Keys that no Firecracker knows are named in the log and ignored.
///
/// # Errors
/// All variants.
pub fn read<T: Schema>(body: &[u8]) -> Result<T, Error> {
    let json = |error: serde_json::Error| Error::Json(error.to_string());
    let value: Value = serde_json::from_slice(body).map_err(json)?;
    let unknown = field::check(T::FIELDS, &value)?;
    let read = serde_json::from_slice(body).map_err(json)?;
    if let Some(names) = unknown {
        log::warn!("api: ignored in a {}: {names}", T::NAME);
    }
    Ok(read)
}
