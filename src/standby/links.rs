//! Interfaces of an instance on the host.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use devices::virtio::net::tap::Tap;

use super::config::{Config, Link};

/// Interface with its tap.
#[derive(Debug)]
struct HeldTap {
    id: Box<str>,
    tap: Tap,
}

/// Taps of an instance, which stay open while its process uses them: the kernel keeps their frames.
#[derive(Debug, Default)]
pub struct Links(Vec<HeldTap>);

impl Links {
    /// Opens the taps of an instance.
    ///
    /// # Errors
    /// A text that names the tap that is missing or busy.
    pub fn open(config: &Config) -> Result<Self, String> {
        let mut held = Vec::new();
        for interface in &config.interfaces {
            if let Link::Tap(name) = &interface.link {
                let tap = Tap::open(name).map_err(|error| vmm::ErrorChain(&error).to_string())?;
                let id = interface.id.as_str().into();
                held.push(HeldTap { id, tap });
            }
        }
        Ok(Self(held))
    }

    /// Returns true if the taps are open.
    pub fn is_open(&self) -> bool {
        !self.0.is_empty()
    }

    /// Returns the taps by the identifiers of their interfaces.
    pub fn taps(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.0.iter().map(|held| (&*held.id, held.tap.as_fd()))
    }

    /// Returns the descriptors that are readable when a frame arrives.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(|held| held.tap.as_fd().as_raw_fd())
    }
}
