//! Bodies of requests and responses, with the keys of Firecracker's specification.
//!
//! Each field is declared once, by the macro `schema!`. The schemas in `resources/openapi.yaml` are generated from the same
//! declarations. To update them after a change, run `UPDATE_OPENAPI=1 cargo test -p api specification`.

mod action;
mod boot;
mod debugger;
mod drive;
mod field;
mod info;
mod limiter;
mod machine;
mod macros;
mod network;
#[cfg(test)]
mod openapi;
mod output;
mod scale_to_zero;
mod snapshot;
mod status;
mod vsock;

#[cfg(test)]
mod tests;

pub use action::{Action, ActionType, VmState, VmUpdate};
pub use boot::{BootSource, DEFAULT_BOOT_ARGS, MAX_BOOT_ARGS};
pub use debugger::Debugger;
pub use drive::{CacheType, Drive, DriveUpdate, IoEngine};
pub use field::{Error, Field, FieldType, Off, Rule, Schema, read};
pub use info::{InstanceInfo, InstanceState, Version, VmConfiguration};
pub use limiter::{RateLimiter, TokenBucket};
pub use machine::{HugePages, MachineConfiguration, MachineConfigurationUpdate};
pub use network::{NetworkInterface, NetworkInterfaceUpdate};
pub use output::{Logger, Metrics, Serial};
pub use scale_to_zero::{ScaleToZero, ScaleToZeroAction, ScaleToZeroActionType, ScaleToZeroInfo};
pub use snapshot::{
    BackendType, DriveOverride, MemBackend, NetworkOverride, RecordWorkingSet, SnapshotCreate, SnapshotLoad,
    SnapshotType,
};
pub use status::{DeviceStatus, UnclaimedAccess, VcpuRegisters, VcpuStatus, VmRegisters, VmStatus};
pub use vsock::Vsock;
