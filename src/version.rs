//! `mayfly version`: versions of the program and of its interfaces.

use serde_json::json;
use vmm::arch::{Native, Platform};

use crate::cli::args::firecracker;
use crate::snapshot;

/// Version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit of the sources, if the build states it. A query of git would compile the crate again after each commit.
const COMMIT: Option<&str> = option_env!("MAYFLY_COMMIT");

/// Returns the line of `mayfly --version`.
pub fn line() -> String {
    format!("mayfly {VERSION}\n")
}

/// Returns all versions as JSON.
pub fn json() -> String {
    let format = snapshot::format_version();
    let versions = json!({
        "version": VERSION,
        "commit": COMMIT.filter(|commit| !commit.is_empty()),
        "architecture": Native::ARCHITECTURE.to_string(),
        "firecracker_api": firecracker::VERSION,
        "snapshot_format": format.trim_start_matches('v').trim_end(),
    });
    format!("{versions:#}\n")
}
