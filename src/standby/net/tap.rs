//! Tap of one suspended instance.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use devices::virtio::net::MAX_PACKET;
use devices::virtio::net::tap::{self, Tap};

use super::first_frames::FirstFrames;
use super::frame::VNET_HEADER;
use super::reply;
use super::rule::{Addresses, Verdict, WakeRule, classify};
use super::sys;

/// Maximum number of frames that one call reads: a flood at one tap must not delay the others.
const MAX_BATCH: usize = 256;

/// Buffer for one packet, which all sleepers share.
pub struct Scratch(Box<[u8]>);

impl Default for Scratch {
    fn default() -> Self {
        // The kernel provides the pages at their first use.
        Self(vec![0; MAX_PACKET].into())
    }
}

impl Scratch {
    /// Returns the whole buffer.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Counters of a sleeper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests for an address that were answered.
    pub answered: u32,
    /// Frames without an effect.
    pub ignored: u32,
}

/// Suspended instance with a tap of its own.
#[derive(Debug)]
pub struct Sleeper {
    tap: Tap,
    addresses: Addresses,
    rule: WakeRule,
    counters: Counters,
}

impl Sleeper {
    /// Attaches to the tap `name`, which must exist.
    ///
    /// # Errors
    /// As [`Tap::open`].
    pub fn open(name: &str, addresses: Addresses, rule: WakeRule) -> Result<Self, tap::Error> {
        Tap::open(name).map(|tap| Self::new(tap, addresses, rule))
    }

    /// Uses a tap that is attached, for example one that the previous process has left with systemd.
    ///
    /// # Errors
    /// As [`Tap::from_descriptor`].
    pub fn from_descriptor(
        descriptor: OwnedFd,
        addresses: Addresses,
        rule: WakeRule,
    ) -> Result<Self, tap::Error> {
        Tap::from_descriptor(descriptor).map(|tap| Self::new(tap, addresses, rule))
    }

    /// Uses an open tap.
    pub fn new(tap: Tap, addresses: Addresses, rule: WakeRule) -> Self {
        Self {
            tap,
            addresses,
            rule,
            counters: Counters::default(),
        }
    }

    /// Returns the descriptor, which is readable when a frame has arrived.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Reads frames until one wakes the instance, and answers requests for its addresses. Returns the frame that wakes it; later ones
    /// wait in the tap. The descriptor stays readable if a call leaves frames.
    ///
    /// # Errors
    /// Fails if the interface is down or deleted.
    pub fn on_readable(&mut self, scratch: &mut Scratch) -> io::Result<Option<FirstFrames>> {
        for _ in 0..MAX_BATCH {
            let length = match sys::read(self.tap.as_fd(), scratch.bytes()) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let packet = &scratch.bytes()[..length];
            let frame = packet.get(VNET_HEADER..).unwrap_or_default();
            match classify(frame, &self.addresses, &self.rule) {
                Verdict::Wake => {
                    let mut frames = FirstFrames::default();
                    if frames.push(packet) {
                        return Ok(Some(frames));
                    }
                }
                Verdict::Answer(reply) => {
                    // A full queue drops it, as any other frame; the peer repeats its request.
                    let _ = send(self.tap.as_fd(), reply.bytes());
                    self.counters.answered = self.counters.answered.saturating_add(1);
                }
                Verdict::Ignore => self.counters.ignored = self.counters.ignored.saturating_add(1),
            }
        }
        Ok(None)
    }

    /// Announces the addresses of the instance to its network: bridges learn the port of its tap.
    ///
    /// # Errors
    /// Fails if the interface is down or deleted.
    pub fn announce(&self) -> io::Result<()> {
        for ip in &self.addresses.ip {
            send(
                self.tap.as_fd(),
                reply::announcement(*ip, self.addresses.mac).bytes(),
            )?;
        }
        Ok(())
    }

    /// Returns tap, addresses and rule.
    pub fn into_parts(self) -> (Tap, Addresses, WakeRule) {
        (self.tap, self.addresses, self.rule)
    }
}

/// Sends a frame as the guest would.
fn send(tap: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
    let mut packet = [0; 128];
    let length = VNET_HEADER + frame.len();
    let packet = packet.get_mut(..length).ok_or(io::ErrorKind::InvalidInput)?;
    packet[VNET_HEADER..].copy_from_slice(frame);
    sys::write(tap, packet)
}
