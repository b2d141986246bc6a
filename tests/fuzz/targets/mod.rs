//! Fuzz targets. Each is a plain function of bytes that panics if a property is violated.

mod board;
mod http;
mod image;
mod input;
mod json;
mod load;
mod registers;
mod state;
mod virtio;

/// Function that checks the properties of one subject for any bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of the target, its corpus and its test.
    pub name: &'static str,
    /// Checks one input. Panics if a property is violated.
    pub run: fn(&[u8]),
    /// Maximum length of an input in bytes.
    pub max_length: usize,
    /// Byte strings that the mutator inserts.
    pub dictionary: &'static [&'static [u8]],
    /// The target creates VMs.
    pub needs_kvm: bool,
}

impl Target {
    const fn new(
        name: &'static str,
        run: fn(&[u8]),
        max_length: usize,
        dictionary: &'static [&'static [u8]],
    ) -> Self {
        Self {
            name,
            run,
            max_length,
            dictionary,
            needs_kvm: false,
        }
    }
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target::new("image", image::run, 32 << 10, image::DICTIONARY),
    Target::new("http", http::run, 4 << 10, http::DICTIONARY),
    Target::new("json", json::run, 4 << 10, json::DICTIONARY),
    Target::new("state", state::run, 32 << 10, state::DICTIONARY),
    Target {
        needs_kvm: true,
        ..Target::new("load", load::run, 32 << 10, state::DICTIONARY)
    },
    Target::new("registers", registers::run, 1 << 10, &[]),
    Target::new("block", virtio::run_block, 2 << 10, virtio::DICTIONARY),
    Target::new("net", virtio::run_net, 2 << 10, virtio::DICTIONARY),
    Target::new("race", virtio::run_race, 1 << 10, virtio::DICTIONARY),
];
