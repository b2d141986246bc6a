//! Limits of images, whose content may be hostile. Some are smaller in unit tests, which exceed them.

/// Maximum bytes of an index, a manifest or a configuration. Registries limit manifests to 4 MiB.
pub const MAX_JSON: u64 = 4 << 20;
/// Maximum bytes of all of them, as often as they are read.
pub const MAX_JSON_TOTAL: u64 = if cfg!(test) { 6 << 20 } else { 64 << 20 };
/// Maximum bytes of the file `urunc.json`.
pub const MAX_METADATA: u64 = 1 << 20;
/// Maximum depth of indexes.
pub const MAX_DEPTH: usize = 4;
/// Maximum number of entries of all indexes of an image.
pub const MAX_MANIFESTS: usize = 1000;
/// Maximum number of layers. Docker permits 127.
pub const MAX_LAYERS: usize = 256;
/// Maximum number of members of an archive.
pub const MAX_MEMBERS: usize = 100_000;
/// Maximum number of entries of all layers.
pub const MAX_ENTRIES: usize = if cfg!(test) { 100 } else { 500_000 };
/// Maximum bytes of the paths and targets of all entries, which are kept in memory.
pub const MAX_NAMES: usize = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// Maximum bytes of the path of an entry, and of the target of a link.
pub const MAX_PATH: usize = 4096;
/// Maximum bytes of an extension header of a tar archive, which is read into memory.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// Maximum number of links on the way to a file, as of Linux.
pub const MAX_LINKS: usize = 40;
/// Maximum bytes of an unpacked layer.
pub const MAX_UNPACKED: u64 = if cfg!(test) { 4 << 20 } else { 8 << 30 };
/// Maximum bytes of all unpacked layers of an image, each counted once.
pub const MAX_UNPACKED_TOTAL: u64 = if cfg!(test) { 10 << 20 } else { 16 << 30 };
/// Maximum ratio of unpacked to compressed bytes, beyond [`FREE_UNPACKED`].
pub const MAX_RATIO: u64 = 500;
/// Unpacked bytes of a layer that need no ratio.
pub const FREE_UNPACKED: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };
/// Maximum bytes of a kernel.
pub const MAX_KERNEL: u64 = if cfg!(test) { 2 << 20 } else { 512 << 20 };
/// Maximum bytes of an initrd.
pub const MAX_INITRD: u64 = 2 << 30;
