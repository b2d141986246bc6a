//! Helpers of the fuzz targets: files in memory, and valid headers of state files.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Length of the fixed part of the header of a state file.
pub const FIXED_LENGTH: usize = 48;
/// Offset of the length of the processor identity.
const CPU_LENGTH: usize = 20;
/// Offset of the length of the sections.
const LENGTH: usize = 32;
/// Offset of the checksum.
const CHECKSUM: usize = 40;

/// Returns the path of a file in memory, valid while the file is open.
pub fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Sets the length of the sections and the checksum of a state file, so that the loader reads the sections. A file shorter than
/// the header stays unchanged.
pub fn correct_header(bytes: &mut [u8]) {
    if bytes.len() < FIXED_LENGTH {
        return;
    }
    let cpu = u64::from(u16::from_le_bytes([bytes[CPU_LENGTH], bytes[CPU_LENGTH + 1]]));
    let length = (bytes.len() - FIXED_LENGTH) as u64;
    bytes[LENGTH..CHECKSUM].copy_from_slice(&length.saturating_sub(cpu).to_le_bytes());
    let covered = bytes[..CHECKSUM].iter().chain(&bytes[FIXED_LENGTH..]);
    let checksum = !covered.fold(!0_u64, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xC96C_5795_D787_0F42 * (crc & 1))
        })
    });
    bytes[CHECKSUM..FIXED_LENGTH].copy_from_slice(&checksum.to_le_bytes());
}
