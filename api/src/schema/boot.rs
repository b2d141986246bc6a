//! Image, initrd and command line of the guest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use vmm::config::Protocol;

use super::macros::{choice, schema};

/// Command line of a guest without `boot_args`: Firecracker's default, for Linux.
pub const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux \
     i8042.dumbkbd swiotlb=noforce";

/// Maximum length of a command line in bytes: 2048 in Linux, less the terminating NUL.
pub const MAX_BOOT_ARGS: usize = 2047;

choice! {
    /// Boot protocol.
    KernelProtocol mirrors Protocol {
        /// 64-bit Linux protocol.
        Linux = "linux",
        /// PVH.
        Pvh = "pvh",
        /// Multiboot 1.
        Multiboot = "multiboot",
    }
}

schema! {
    /// Image, initrd and command line of the guest.
    #[derive(Deserialize, Serialize)]
    body BootSource {
        /// Path of the image.
        kernel_image_path: PathBuf;
        /// Path of the initial RAM disk or other module.
        initrd_path: Option<PathBuf>;
        /// Command line. Arguments added for the root drive count toward the length.
        #[max_length(MAX_BOOT_ARGS)]
        #[pattern("^[ -~]*$")]
        boot_args: Option<String> = DEFAULT_BOOT_ARGS;
        /// Boot protocol. The image selects it by default: PVH by a note, multiboot by a header, else linux.
        #[serde(skip_serializing_if = "Option::is_none")]
        kernel_protocol: Option<KernelProtocol>;
    }
    example "{kernel_image_path: /images/guest, initrd_path: /images/initrd, boot_args: guest -- hello, kernel_protocol: pvh}";
}
