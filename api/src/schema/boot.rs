//! The guest's image.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Field, Schema};

/// The command line of a guest for which nobody gave one: Firecracker's, for Linux.
pub const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux \
     i8042.dumbkbd swiotlb=noforce";

/// What a guest is started from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct BootSource {
    /// Its image.
    pub kernel_image_path: PathBuf,
    /// Its initial RAM disk, or whatever else it takes in that place.
    pub initrd_path: Option<PathBuf>,
    /// Its command line.
    pub boot_args: Option<String>,
}

impl Schema for BootSource {
    const NAME: &'static str = "BootSource";
    const FIELDS: &'static [Field] = &[
        Field::any("kernel_image_path"),
        Field::any("initrd_path"),
        Field::any("boot_args"),
    ];
}
