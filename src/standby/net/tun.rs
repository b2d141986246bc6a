//! Network whose suspended instances share one layer-3 TUN.
//!
//! ```text
//! asleep   route of the network ------------> TUN: table of addresses, wake rule
//! wake     host route to a tap of the pool, then the TUN is read until it is empty
//!          packets of the TUN -> first frames of the instance; later ones -> tap
//! running  host route ----------------------> tap of the instance
//! asleep   host route removed; packets in the tap count as packets of the TUN
//! ```
//! All taps have one Ethernet address: a guest that wakes on another tap has its gateway in its cache. The entry of the neighbor table
//! for a running instance is permanent, so that no packet waits for ARP, and the limits of the table do not apply. It stays until another
//! instance gets the tap: the kernel would lose the packet of a sender that has looked up its route before the move.
//!
//! A sender may have looked up its route before the move, and send after the TUN was read. The packet is then late: it goes to the tap by
//! a packet socket, and may arrive after later ones.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use devices::virtio::net::Backend as _;
use devices::virtio::net::tap::{self, Tap};

use super::first_frames::{FirstFrames, ethernet_header};
use super::frame::{Ethernet, Mac, Packet, VNET_HEADER};
use super::route::{self, Change, Netlink};
use super::rule::WakeRule;
use super::stale;
use super::sys;
use super::table::Table;
use super::tap::Scratch;

/// Ethernet address of all taps.
pub const GATEWAY_MAC: Mac = *b"\x02mayfl";
/// Number of packets that wait in the TUN, for all sleepers.
pub const QUEUE_LENGTH: usize = 10_000;
/// Maximum number of packets that one call reads.
const MAX_BATCH: usize = 1024;
/// Maximum length in bytes of the first frames of all instances that wake.
const MAX_PENDING: usize = 64 << 20;
/// Time after the move of a route in which packets by the old route arrive: a sender needs it from the lookup to the queue.
const GRACE: Duration = Duration::from_micros(20);

/// Failure of a network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An interface cannot be created or attached.
    #[error(
        "cannot attach to interface {name}; creation needs CAP_NET_ADMIN and access to {}",
        sys::DEVICE
    )]
    Attach {
        /// Name of the interface.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A tap cannot be configured.
    #[error("cannot use tap {name}")]
    Tap {
        /// Name of the interface.
        name: String,
        /// Cause.
        #[source]
        source: tap::Error,
    },
    /// An interface cannot be configured.
    #[error("cannot configure interface {name}: {operation} failed; it needs CAP_NET_ADMIN")]
    Configure {
        /// Name of the interface.
        name: String,
        /// Operation.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A route or neighbor cannot be changed.
    #[error("cannot route {address} to interface {name}; routes need CAP_NET_ADMIN")]
    Route {
        /// Address.
        address: IpAddr,
        /// Name of the interface.
        name: String,
        /// Cause.
        #[source]
        source: route::Error,
    },
    /// The address is not registered.
    #[error("cannot find address {0}; register it first")]
    Unknown(IpAddr),
    /// The address is registered.
    #[error("cannot register address {0} twice; choose another")]
    Registered(IpAddr),
    /// The instance has a tap.
    #[error("cannot change address {0}: its instance has a tap; release it first")]
    Assigned(IpAddr),
    /// All taps are in use.
    #[error(
        "cannot take a tap for {address}: all {limit} are in use; raise the number of taps or suspend an instance"
    )]
    NoTap {
        /// Address.
        address: IpAddr,
        /// Number of taps.
        limit: usize,
    },
    /// A descriptor cannot be duplicated, or the TUN cannot be read.
    #[error("cannot {operation}")]
    System {
        /// Operation.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Parameters of a network.
#[derive(Clone, Debug)]
pub struct NetworkSetup {
    /// Name of the TUN.
    pub name: String,
    /// Addresses of the host on the TUN, with the lengths of their prefixes: the range of the instances.
    pub gateways: Vec<(IpAddr, u8)>,
    /// Start of the names of the taps; a number follows.
    pub tap_prefix: String,
    /// Maximum number of taps.
    pub max_taps: usize,
    /// Keeps TUN and taps when this process ends: those of running instances and the routes survive it.
    pub persistent: bool,
}

/// Instance that a packet wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// Its address.
    pub address: IpAddr,
    /// Number that the caller has for it.
    pub instance: u32,
}

/// Tap for an instance that wakes.
#[derive(Debug)]
pub struct Assigned {
    /// Tap. The network keeps a descriptor too.
    pub tap: OwnedFd,
    /// Name of the tap.
    pub name: String,
    /// Packets before those of the tap, as Ethernet frames.
    pub frames: FirstFrames,
}

/// Counters of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that woke an instance, or waited for it.
    pub kept: u64,
    /// Packets that woke no instance by its rule.
    pub ignored: u64,
    /// Packets to unknown addresses.
    pub unknown: u64,
    /// Packets beyond the limits of an instance that wakes.
    pub dropped: u64,
    /// Packets that reached the TUN after the route had moved.
    pub late: u64,
}

/// Tap of the pool.
#[derive(Debug)]
struct PoolTap {
    /// None while only the instance has it open.
    tap: Option<Tap>,
    name: String,
    index: u32,
    /// Address of the last instance, whose entry in the neighbor table stays until the next one has the tap.
    neighbor: Option<IpAddr>,
}

/// Instance that wakes or runs.
#[derive(Debug)]
struct Slot {
    address: IpAddr,
    mac: Mac,
    frames: FirstFrames,
    tap: Option<PoolTap>,
}

/// Network with one TUN for all instances that sleep.
#[derive(Debug)]
pub struct Network {
    setup: NetworkSetup,
    tun: File,
    netlink: Netlink,
    /// None without CAP_NET_RAW.
    sender: Option<OwnedFd>,
    table: Table,
    slots: Vec<Option<Slot>>,
    vacant: Vec<usize>,
    /// Bytes of the first frames in all slots.
    pending: usize,
    wakes: VecDeque<Wake>,
    /// The tap that is free longest is used first.
    free_taps: VecDeque<PoolTap>,
    /// Number of taps, free or in use.
    taps: usize,
    /// Number in the name of the next tap.
    next_tap: usize,
    counters: Counters,
}

impl Network {
    /// Creates the TUN, or attaches to it.
    ///
    /// # Errors
    /// [`Error::Attach`] and [`Error::Configure`].
    pub fn open(setup: NetworkSetup) -> Result<Self, Error> {
        let name = setup.name.clone();
        let attach = |source| Error::Attach {
            name: name.clone(),
            source,
        };
        let failed = |operation| {
            let name = name.clone();
            move |source| Error::Configure {
                name,
                operation,
                source,
            }
        };
        let tun = sys::open_interface(&name, sys::TUN).map_err(attach)?;
        if setup.persistent {
            sys::set_persistent(&tun).map_err(failed("TUNSETPERSIST"))?;
        }
        let length = i32::try_from(QUEUE_LENGTH).unwrap_or(i32::MAX);
        sys::set_queue_length(&name, length).map_err(failed("SIOCSIFTXQLEN"))?;
        let index = sys::interface_index(&name).map_err(attach)?;
        let mut netlink = Netlink::new().map_err(failed("netlink"))?;
        let mut changes = vec![Change::SetUp(index)];
        for (address, prefix) in setup.gateways.iter().copied() {
            match address {
                IpAddr::V4(_) => changes.push(Change::AddAddress(address, prefix, index)),
                IpAddr::V6(range) => {
                    changes.push(Change::AddAddress(address, 128, index));
                    changes.push(Change::AddRange(range, prefix, index));
                }
            }
        }
        netlink
            .apply(&changes)
            .map_err(|error| failed(error.operation)(error.source))?;
        Ok(Self {
            setup,
            tun,
            netlink,
            sender: sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).ok(),
            table: Table::default(),
            slots: Vec::new(),
            vacant: Vec::new(),
            pending: 0,
            wakes: VecDeque::new(),
            free_taps: VecDeque::new(),
            taps: 0,
            next_tap: 0,
            counters: Counters::default(),
        })
    }

    /// Returns the descriptor, which is readable when a packet for a sleeper has arrived.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns the number of registered addresses.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns true if no address is registered.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Registers the address of an instance that sleeps. `mac` is the Ethernet address that the network sees.
    ///
    /// # Errors
    /// [`Error::Registered`]
    pub fn register(
        &mut self,
        address: IpAddr,
        instance: u32,
        mac: Mac,
        rule: WakeRule,
    ) -> Result<(), Error> {
        match self.table.insert(address, instance, mac, rule) {
            true => Ok(()),
            false => Err(Error::Registered(address)),
        }
    }

    /// Removes the address of an instance that sleeps, or that wakes without a tap.
    ///
    /// # Errors
    /// [`Error::Unknown`], and [`Error::Assigned`] if the instance has a tap.
    pub fn unregister(&mut self, address: IpAddr) -> Result<(), Error> {
        self.abandon(address)?;
        self.table.remove(address);
        Ok(())
    }

    /// Drops the packets of an instance that does not wake after all. It sleeps on.
    ///
    /// # Errors
    /// [`Error::Unknown`], and [`Error::Assigned`] if the instance has a tap.
    pub fn abandon(&mut self, address: IpAddr) -> Result<(), Error> {
        let entry = self.table.get(address).ok_or(Error::Unknown(address))?;
        let Some(number) = entry.slot() else { return Ok(()) };
        if self.slot(number).is_some_and(|slot| slot.tap.is_some()) {
            return Err(Error::Assigned(address));
        }
        self.remove_slot(number);
        self.wakes.retain(|wake| wake.address != address);
        Ok(())
    }

    /// Fills the pool with `count` taps, so that a wake creates none.
    ///
    /// # Errors
    /// [`Error::Attach`], [`Error::Tap`] and [`Error::Configure`].
    pub fn prepare_taps(&mut self, count: usize) -> Result<(), Error> {
        while self.free_taps.len() < count && self.taps < self.setup.max_taps {
            let tap = self.create_tap()?;
            self.free_taps.push_back(tap);
        }
        Ok(())
    }

    /// Reads packets. Returns the instances that they wake. Their packets are kept until [`assign`](Self::assign).
    ///
    /// # Errors
    /// [`Error::System`] if the TUN cannot be read.
    pub fn on_readable(&mut self, scratch: &mut Scratch) -> Result<Vec<Wake>, Error> {
        self.read(scratch, MAX_BATCH)?;
        Ok(self.take_wakes())
    }

    /// Returns the instances that wake since the last call: a call of [`assign`](Self::assign) or [`release`](Self::release) may find
    /// some too.
    pub fn take_wakes(&mut self) -> Vec<Wake> {
        self.wakes.drain(..).collect()
    }

    /// Gives a tap to an instance: its route moves to the tap. Returns the tap and the packets that precede those of the tap.
    ///
    /// # Errors
    /// [`Error`]; the instance then has no tap, and its packets are kept.
    pub fn assign(&mut self, address: IpAddr, scratch: &mut Scratch) -> Result<Assigned, Error> {
        let entry = *self.table.get(address).ok_or(Error::Unknown(address))?;
        let number = match entry.slot() {
            Some(number) => number,
            // Woken by the user, without a packet.
            None => self.add_slot(address, entry.mac),
        };
        if self.slot(number).is_some_and(|slot| slot.tap.is_some()) {
            return Err(Error::Assigned(address));
        }
        let mut tap = self.take_tap(address)?;
        // A late packet to the instance that had the tap before must not reach this one.
        self.drain_tap(&mut tap, scratch);
        match self.move_route(address, entry.mac, &tap, scratch) {
            Ok(descriptor) => {
                let name = tap.name.clone();
                let mut frames = FirstFrames::default();
                if let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) {
                    frames = std::mem::take(&mut slot.frames);
                    slot.tap = Some(tap);
                }
                self.pending -= frames.bytes();
                self.wakes.retain(|wake| wake.address != address);
                Ok(Assigned {
                    tap: descriptor,
                    name,
                    frames,
                })
            }
            Err(error) => {
                self.free_taps.push_back(tap);
                Err(error)
            }
        }
    }

    /// Registers an instance that runs on the tap `name` since before this process.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Assigned`], and [`Error::Attach`] without the tap.
    pub fn adopt(&mut self, address: IpAddr, name: &str) -> Result<(), Error> {
        let entry = *self.table.get(address).ok_or(Error::Unknown(address))?;
        if entry.slot().is_some() {
            return Err(Error::Assigned(address));
        }
        let index = sys::interface_index(name).map_err(|source| Error::Attach {
            name: name.to_owned(),
            source,
        })?;
        let number = self.add_slot(address, entry.mac);
        self.taps += 1;
        if let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) {
            slot.tap = Some(PoolTap {
                tap: None,
                name: name.to_owned(),
                index,
                neighbor: None,
            });
        }
        Ok(())
    }

    /// Removes the host routes to taps that no adopted instance has: an earlier process has ended before their release. Their packets are
    /// gone: the kernel keeps none for a tap that no process has open.
    ///
    /// # Errors
    /// [`Error::System`] if the routes cannot be read, and [`Error::Route`] if one cannot be removed.
    pub fn reclaim(&mut self) -> Result<(), Error> {
        let routes = stale::host_routes().map_err(|source| Error::System {
            operation: "read the routes",
            source,
        })?;
        for (address, name) in routes {
            let number = name.strip_prefix(&self.setup.tap_prefix);
            let is_tap = number.is_some_and(|number| number.parse::<usize>().is_ok());
            let slot = self.table.get(address).and_then(|entry| self.slot(entry.slot()?));
            let is_adopted = slot
                .and_then(|slot| slot.tap.as_ref())
                .is_some_and(|tap| tap.name == name);
            let Some(index) = sys::interface_index(&name).ok().filter(|_| is_tap && !is_adopted) else {
                continue;
            };
            let changes = [
                Change::DeleteRoute(address, index),
                Change::DeleteNeighbor(address, index),
            ];
            let removed = self.netlink.apply(&changes);
            removed.map_err(|source| Error::Route {
                address,
                name,
                source,
            })?;
        }
        Ok(())
    }

    /// Takes back the tap of an instance whose process has ended. The instance sleeps; packets that wait in the tap may wake it at once.
    ///
    /// # Errors
    /// [`Error::Unknown`], and any other if the route or the tap cannot be changed; the instance sleeps all the same.
    pub fn release(&mut self, address: IpAddr, scratch: &mut Scratch) -> Result<(), Error> {
        let entry = self.table.get(address).ok_or(Error::Unknown(address))?;
        let Some(number) = entry.slot() else { return Ok(()) };
        let Some(slot) = self.remove_slot(number) else {
            return Ok(());
        };
        let Some(mut tap) = slot.tap else { return Ok(()) };
        // Not the neighbor: senders may have looked up the route before.
        let changes = [Change::DeleteRoute(address, tap.index)];
        let removed = self.netlink.apply(&changes).map_err(|source| Error::Route {
            address,
            name: tap.name.clone(),
            source,
        });
        if tap.tap.is_none() {
            match self.open_tap(&tap.name) {
                Ok(opened) => tap = opened,
                Err(error) => {
                    self.taps -= 1;
                    return Err(error);
                }
            }
        }
        tap.neighbor = Some(address);
        let start = Instant::now();
        while {
            self.drain_tap(&mut tap, scratch);
            start.elapsed() < GRACE
        } {}
        match &removed {
            // Its route would still lead to an instance that sleeps.
            Err(_) => self.taps -= 1,
            Ok(()) => self.free_taps.push_back(tap),
        }
        removed
    }

    fn slot(&self, number: usize) -> Option<&Slot> {
        self.slots.get(number).and_then(Option::as_ref)
    }

    fn add_slot(&mut self, address: IpAddr, mac: Mac) -> usize {
        let number = self.vacant.pop().unwrap_or(self.slots.len());
        let slot = Some(Slot {
            address,
            mac,
            frames: FirstFrames::default(),
            tap: None,
        });
        match self.slots.get_mut(number) {
            Some(vacant) => *vacant = slot,
            None => self.slots.push(slot),
        }
        if let Some(entry) = self.table.get_mut(address) {
            entry.set_slot(Some(number));
        }
        number
    }

    fn remove_slot(&mut self, number: usize) -> Option<Slot> {
        let slot = self.slots.get_mut(number)?.take()?;
        self.vacant.push(number);
        self.pending -= slot.frames.bytes();
        if let Some(entry) = self.table.get_mut(slot.address) {
            entry.set_slot(None);
        }
        Some(slot)
    }

    /// Reads at most `limit` packets of the TUN. Returns true if there are no more.
    fn read(&mut self, scratch: &mut Scratch, limit: usize) -> Result<bool, Error> {
        for _ in 0..limit {
            match sys::read(self.tun.as_fd(), scratch.bytes()) {
                Ok(length) => self.receive(&scratch.bytes()[..length], None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::System {
                        operation: "read the TUN",
                        source,
                    });
                }
            }
        }
        Ok(false)
    }

    /// Handles an IP packet for a sleeper. `frame` is the packet as a tap returns it, if it comes from one.
    fn receive(&mut self, bytes: &[u8], frame: Option<&[u8]>) {
        let Some(packet) = Packet::parse(bytes) else {
            self.counters.unknown += 1;
            return;
        };
        let address = packet.destination;
        let Some(entry) = self.table.get(address).copied() else {
            self.counters.unknown += 1;
            return;
        };
        let number = match entry.slot() {
            Some(number) => number,
            None if self.table.rule(&entry).wakes(Some(&packet)) => {
                let instance = entry.instance;
                self.wakes.push_back(Wake { address, instance });
                self.add_slot(address, entry.mac)
            }
            None => {
                self.counters.ignored += 1;
                return;
            }
        };
        let pending = self.pending;
        let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        if let Some(tap) = &slot.tap {
            self.counters.late += 1;
            let header = ethernet_header(bytes, slot.mac, GATEWAY_MAC);
            let sent = self
                .sender
                .as_ref()
                .map(|sender| sys::send_frame(sender, tap.index, &header, bytes));
            self.counters.dropped += u64::from(!matches!(sent, Some(Ok(()))));
            return;
        }
        let before = slot.frames.bytes();
        let is_kept = pending + bytes.len() <= MAX_PENDING
            && match frame {
                Some(frame) => slot.frames.push(frame),
                None => slot.frames.push_packet(bytes, slot.mac, GATEWAY_MAC),
            };
        self.pending += slot.frames.bytes() - before;
        match is_kept {
            true => self.counters.kept += 1,
            false => self.counters.dropped += 1,
        }
    }

    /// Moves the route of `address` to `tap`, and reads the packets that came by the old one. Returns a descriptor of the tap.
    fn move_route(
        &mut self,
        address: IpAddr,
        mac: Mac,
        tap: &PoolTap,
        scratch: &mut Scratch,
    ) -> Result<OwnedFd, Error> {
        let duplicate = |tap: &Tap| tap.as_fd().try_clone_to_owned();
        let open = tap.tap.as_ref().ok_or(io::ErrorKind::NotFound.into());
        let descriptor = open.and_then(duplicate).map_err(|source| Error::System {
            operation: "duplicate the descriptor of a tap",
            source,
        })?;
        let stale = tap.neighbor.filter(|neighbor| *neighbor != address);
        let mut changes: Vec<_> = stale
            .map(|neighbor| Change::DeleteNeighbor(neighbor, tap.index))
            .into_iter()
            .collect();
        changes.extend([
            Change::AddNeighbor(address, mac, tap.index),
            Change::AddRoute(address, tap.index),
        ]);
        self.netlink.apply(&changes).map_err(|source| Error::Route {
            address,
            name: tap.name.clone(),
            source,
        })?;
        let start = Instant::now();
        // A queue of this length holds no packet of before, whatever other senders add meanwhile.
        let mut left = 2 * QUEUE_LENGTH;
        while left > 0 {
            let limit = left.min(MAX_BATCH);
            let is_empty = self.read(scratch, limit)?;
            if is_empty && start.elapsed() >= GRACE {
                break;
            }
            left -= if is_empty { 1 } else { limit };
        }
        Ok(descriptor)
    }

    fn take_tap(&mut self, address: IpAddr) -> Result<PoolTap, Error> {
        match self.free_taps.pop_front() {
            Some(tap) => Ok(tap),
            None if self.taps < self.setup.max_taps => self.create_tap(),
            None => Err(Error::NoTap {
                address,
                limit: self.setup.max_taps,
            }),
        }
    }

    /// Creates the next tap that no process uses.
    fn create_tap(&mut self) -> Result<PoolTap, Error> {
        loop {
            let name = format!("{}{}", self.setup.tap_prefix, self.next_tap);
            self.next_tap += 1;
            match self.open_tap(&name) {
                Ok(tap) => {
                    self.taps += 1;
                    return Ok(tap);
                }
                // A running instance of an earlier process has it.
                Err(Error::Attach { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => {
                    self.next_tap -= 1;
                    return Err(error);
                }
            }
        }
    }

    /// Creates the tap `name` or attaches to it, and brings it up.
    fn open_tap(&mut self, name: &str) -> Result<PoolTap, Error> {
        let attach = |source| Error::Attach {
            name: name.to_owned(),
            source,
        };
        let failed = |operation| {
            move |source| Error::Configure {
                name: name.to_owned(),
                operation,
                source,
            }
        };
        let file = sys::open_interface(name, sys::TAP).map_err(attach)?;
        sys::set_tap_mac(&file, GATEWAY_MAC).map_err(failed("SIOCSIFHWADDR"))?;
        if self.setup.persistent {
            sys::set_persistent(&file).map_err(failed("TUNSETPERSIST"))?;
        }
        let index = sys::interface_index(name).map_err(attach)?;
        let up = self.netlink.apply(&[Change::SetUp(index)]);
        up.map_err(|error| failed(error.operation)(error.source))?;
        let tap = Tap::from_descriptor(file.into()).map_err(|source| Error::Tap {
            name: name.to_owned(),
            source,
        })?;
        Ok(PoolTap {
            tap: Some(tap),
            name: name.to_owned(),
            index,
            neighbor: None,
        })
    }

    /// Reads all packets that wait in the tap of an instance that has ended, as if they came from the TUN.
    fn drain_tap(&mut self, pool_tap: &mut PoolTap, scratch: &mut Scratch) {
        let Some(tap) = &mut pool_tap.tap else { return };
        // The next guest may support other offloads. Fails only if the interface is gone.
        let _ = tap.use_features(0);
        for _ in 0..QUEUE_LENGTH {
            let length = match sys::read(tap.as_fd(), scratch.bytes()) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let packet = &scratch.bytes()[..length];
            let frame = Ethernet::parse(packet.get(VNET_HEADER..).unwrap_or_default());
            if let Some(frame) = frame.filter(Ethernet::is_unicast) {
                self.receive(frame.payload, Some(packet));
            }
        }
    }
}
