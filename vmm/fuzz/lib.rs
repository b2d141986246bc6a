//! What the fuzz targets share: files in memory, and a state file around any sections.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Length of the header's fixed part of a state file, and where in it the lengths and the checksum are.
pub const FIXED: usize = 48;
const CPU: usize = 20;
const LENGTH: usize = 32;
const CHECKSUM: usize = 40;

/// The path of a file in memory, for as long as it is open.
pub fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Gives a state file the length of its sections and the checksum that it should have, so that what is behind them is looked
/// at. One that is too short stays what it is.
pub fn refit(bytes: &mut [u8]) {
    if bytes.len() < FIXED {
        return;
    }
    let cpu = u64::from(u16::from_le_bytes([bytes[CPU], bytes[CPU + 1]]));
    let length = (bytes.len() - FIXED) as u64;
    bytes[LENGTH..CHECKSUM].copy_from_slice(&length.saturating_sub(cpu).to_le_bytes());
    let covered = bytes[..CHECKSUM].iter().chain(&bytes[FIXED..]);
    let checksum = !covered.fold(!0_u64, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xC96C_5795_D787_0F42 * (crc & 1))
        })
    });
    bytes[CHECKSUM..FIXED].copy_from_slice(&checksum.to_le_bytes());
}
