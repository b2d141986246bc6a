//! Bodies of API requests.
//!
//! A body that is accepted has one meaning: its JSON encoding is accepted and equals it. The first byte selects the type.

use api::schema::{
    Action, BootSource, Drive, DriveUpdate, Error, Logger, MachineConfiguration, MachineConfigurationUpdate,
    Metrics, NetworkInterface, NetworkInterfaceUpdate, RateLimiter, Schema, Serial, SnapshotCreate,
    SnapshotLoad, VmUpdate, Vsock, read,
};
use serde::Serialize;

pub const DICTIONARY: &[&[u8]] = &[
    b"{\"",
    b"\":",
    b",\"",
    b"null",
    b"true",
    b"false",
    b"18446744073709551615",
    b"-1",
    b"1e400",
    b"\\ud800",
    b"drive_id",
    b"path_on_host",
    b"is_root_device",
    b"rate_limiter",
    b"bandwidth",
    b"one_time_burst",
    b"refill_time",
    b"iface_id",
    b"host_dev_name",
    b"guest_mac",
    b"vcpu_count",
    b"mem_size_mib",
    b"snapshot_path",
    b"mem_backend",
    b"\"Full\"",
    b"\"Async\"",
    b"\"Writeback\"",
];

/// Maximum length of an error text: a client must not make the server send a long one.
const MAX_ERROR: usize = 1024;

type Check = fn(&[u8]);

/// Checks of all types, in the order of the first byte.
const CHECKS: [Check; 16] = [
    round_trip::<BootSource>,
    check_drive,
    round_trip::<MachineConfiguration>,
    round_trip::<NetworkInterface>,
    round_trip::<RateLimiter>,
    accept::<Action>,
    accept::<VmUpdate>,
    accept::<DriveUpdate>,
    accept::<MachineConfigurationUpdate>,
    accept::<NetworkInterfaceUpdate>,
    accept::<Logger>,
    accept::<Metrics>,
    accept::<Serial>,
    accept::<SnapshotCreate>,
    accept::<SnapshotLoad>,
    accept::<Vsock>,
];

pub fn run(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else {
        return;
    };
    CHECKS[usize::from(*kind) % CHECKS.len()](body);
}

/// Reads `body` twice with the same result.
fn accept<T: Schema + PartialEq + std::fmt::Debug>(body: &[u8]) {
    let first = checked::<T>(body);
    assert_eq!(first, checked(body));
}

fn checked<T: Schema>(body: &[u8]) -> Result<T, Error> {
    let result = read::<T>(body);
    if let Err(error) = &result {
        let text = error.to_string();
        assert!(text.len() <= MAX_ERROR, "the error text has {} bytes", text.len());
    }
    result
}

/// Reads `body`, encodes the value and reads the encoding.
fn round_trip<T: Schema + Serialize + PartialEq + std::fmt::Debug>(body: &[u8]) {
    let Ok(value) = checked::<T>(body) else { return };
    let encoded = serde_json::to_vec(&value).expect("a body can be encoded");
    let decoded = read::<T>(&encoded).unwrap_or_else(|error| panic!("{value:?} is rejected: {error}"));
    assert_eq!(decoded, value);
}

/// Also checks that the configuration of the VMM keeps all fields.
fn check_drive(body: &[u8]) {
    round_trip::<Drive>(body);
    let Ok(drive) = read::<Drive>(body) else { return };
    let config = drive.into_config();
    assert_eq!(Drive::from_config(&config).into_config(), config);
}
