//! Interfaces of an instance on the host: taps of its own, and taps from the pools of shared networks.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::config::{Config, Interface, Link, WakeOn};
use super::net::tap::Scratch;
use super::net::{Addresses, FirstFrames, Sleeper, WakeRule};
use super::passed::PassedTaps;

/// Tap of a pool, while the instance wakes or runs.
#[derive(Debug)]
pub struct PoolTap {
    /// Identifier of the interface.
    pub interface: Box<str>,
    /// Identifier of the network.
    pub network: Box<str>,
    /// Address of the instance in the network.
    pub address: IpAddr,
    /// Name of the tap.
    pub name: String,
    /// The tap; none for a process of an earlier supervisor.
    pub tap: Option<OwnedFd>,
}

/// Interfaces of an instance. Taps of its own stay open while its process uses them: the kernel keeps their frames.
#[derive(Debug, Default)]
pub struct Links {
    sleepers: Vec<(Box<str>, Sleeper)>,
    /// Taps of shared networks.
    pub pool: Vec<PoolTap>,
}

impl Links {
    /// Opens the taps of an instance, those in `passed` by their descriptors.
    ///
    /// # Errors
    /// A text that names the tap that is missing or busy.
    pub fn open(config: &Config, passed: &PassedTaps) -> Result<Self, String> {
        let mut sleepers = Vec::new();
        for interface in &config.interfaces {
            if let Link::Tap(name) = &interface.link {
                let addresses = Addresses {
                    mac: mac(interface),
                    ip: addresses(interface).collect(),
                };
                let rule = rule(&config.wake_on);
                let opened = match passed.open(name).transpose() {
                    Ok(None) => Sleeper::open(name, addresses, rule),
                    Ok(Some(tap)) => Sleeper::from_descriptor(tap, addresses, rule),
                    Err(error) => {
                        return Err(format!("cannot duplicate the descriptor of tap {name}: {error}"));
                    }
                };
                let sleeper = opened.map_err(|error| vmm::ErrorChain(&error).to_string())?;
                sleepers.push((interface.id.as_str().into(), sleeper));
            }
        }
        Ok(Self {
            sleepers,
            pool: Vec::new(),
        })
    }

    /// Returns true if it has taps.
    pub fn is_open(&self) -> bool {
        !self.sleepers.is_empty()
    }

    /// Returns the taps by the identifiers of their interfaces.
    pub fn taps(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        let own = self.sleepers.iter().map(|(id, sleeper)| (&**id, sleeper.fd()));
        let pool = self
            .pool
            .iter()
            .filter_map(|tap| Some((&*tap.interface, tap.tap.as_ref()?.as_fd())));
        own.chain(pool)
    }

    /// Returns the descriptors that are readable when a frame arrives.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.sleepers.iter().map(|(_, sleeper)| sleeper.fd().as_raw_fd())
    }

    /// Reads frames of the taps. Returns those that wake the instance, with the identifier of their interface.
    ///
    /// # Errors
    /// Fails if an interface is down or deleted.
    pub fn read(&mut self, scratch: &mut Scratch) -> io::Result<Option<(Box<str>, FirstFrames)>> {
        for (id, sleeper) in &mut self.sleepers {
            if let Some(frames) = sleeper.on_readable(scratch)? {
                return Ok(Some((id.clone(), frames)));
            }
        }
        Ok(None)
    }

    /// Announces the addresses of an instance that runs: bridges learn the ports of its taps.
    pub fn announce(&self) {
        for (id, sleeper) in &self.sleepers {
            if let Err(error) = sleeper.announce() {
                log::debug!("standby: cannot announce the addresses of interface {id}: {error}");
            }
        }
    }
}

/// Returns the MAC address that the network sees. The registration has completed it from the snapshot.
pub fn mac(interface: &Interface) -> [u8; 6] {
    interface.mac.map_or([0; 6], |mac| mac.0)
}

/// Returns the addresses of an interface.
pub fn addresses(interface: &Interface) -> impl Iterator<Item = IpAddr> {
    interface
        .ip
        .map(IpAddr::V4)
        .into_iter()
        .chain(interface.ip6.map(IpAddr::V6))
}

/// Converts the rule of a registration.
pub fn rule(wake_on: &WakeOn) -> WakeRule {
    match wake_on {
        WakeOn::Unicast => WakeRule::Unicast,
        WakeOn::NewConnections => WakeRule::NewConnections,
        WakeOn::Ports(ports) => WakeRule::Ports(ports.as_slice().into()),
        // No port is one of none.
        WakeOn::None => WakeRule::Ports([].into()),
    }
}
