//! Addresses of a network, with some tens of bytes each.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::net::IpAddr;

use super::frame::Mac;
use super::rule::WakeRule;

/// State of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number that the caller has for the instance.
    pub instance: u32,
    /// Number of the slot of an instance that wakes or runs, plus one; 0 for one that sleeps.
    slot: u32,
    /// Index of the wake rule.
    rule: u16,
    /// Ethernet address of the instance.
    pub mac: Mac,
}
const _: () = assert!(size_of::<Entry>() == 16);

impl Entry {
    /// Returns the slot of an instance that does not sleep.
    pub fn slot(&self) -> Option<usize> {
        usize::try_from(self.slot.checked_sub(1)?).ok()
    }

    /// Sets the slot; none for an instance that sleeps.
    pub fn set_slot(&mut self, slot: Option<usize>) {
        let number = slot.and_then(|slot| u32::try_from(slot + 1).ok());
        self.slot = number.unwrap_or(0);
    }
}

/// Wake rule with the number of its addresses.
#[derive(Debug)]
struct SharedRule {
    rule: WakeRule,
    users: u32,
}

/// Addresses with their instances. Addresses with equal rules share one.
#[derive(Debug, Default)]
pub struct Table {
    v4: HashMap<[u8; 4], Entry>,
    v6: HashMap<[u8; 16], Entry>,
    rules: Vec<SharedRule>,
}

impl Table {
    /// Returns the number of addresses.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Returns true if there are no addresses.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds `address`. Returns false if it is known, or if there are too many different rules.
    pub fn insert(&mut self, address: IpAddr, instance: u32, mac: Mac, rule: WakeRule) -> bool {
        if self.get(address).is_some() {
            return false;
        }
        let Some(rule) = self.share(rule) else {
            return false;
        };
        let entry = Entry {
            instance,
            slot: 0,
            rule,
            mac,
        };
        match address {
            IpAddr::V4(address) => self.v4.insert(address.octets(), entry),
            IpAddr::V6(address) => self.v6.insert(address.octets(), entry),
        };
        true
    }

    /// Removes `address`, and returns its entry.
    pub fn remove(&mut self, address: IpAddr) -> Option<Entry> {
        fn take<K: Eq + std::hash::Hash>(entry: MapEntry<'_, K, Entry>) -> Option<Entry> {
            match entry {
                MapEntry::Occupied(entry) => Some(entry.remove()),
                MapEntry::Vacant(_) => None,
            }
        }
        let entry = match address {
            IpAddr::V4(address) => take(self.v4.entry(address.octets())),
            IpAddr::V6(address) => take(self.v6.entry(address.octets())),
        }?;
        if let Some(shared) = self.rules.get_mut(usize::from(entry.rule)) {
            shared.users -= 1;
        }
        Some(entry)
    }

    /// Returns the entry of `address`.
    pub fn get(&self, address: IpAddr) -> Option<&Entry> {
        match address {
            IpAddr::V4(address) => self.v4.get(&address.octets()),
            IpAddr::V6(address) => self.v6.get(&address.octets()),
        }
    }

    /// Returns the entry of `address` for changes.
    pub fn get_mut(&mut self, address: IpAddr) -> Option<&mut Entry> {
        match address {
            IpAddr::V4(address) => self.v4.get_mut(&address.octets()),
            IpAddr::V6(address) => self.v6.get_mut(&address.octets()),
        }
    }

    /// Returns the wake rule of `entry`.
    pub fn rule(&self, entry: &Entry) -> &WakeRule {
        let shared = self.rules.get(usize::from(entry.rule));
        shared.map_or(&WakeRule::Unicast, |shared| &shared.rule)
    }

    /// Returns the index of `rule`, which replaces one without users if it is new.
    fn share(&mut self, rule: WakeRule) -> Option<u16> {
        let known = self.rules.iter().position(|shared| shared.rule == rule);
        let unused = || self.rules.iter().position(|shared| shared.users == 0);
        let index = match known.or_else(unused) {
            Some(index) => index,
            None => {
                self.rules.push(SharedRule {
                    rule: WakeRule::Unicast,
                    users: 0,
                });
                self.rules.len() - 1
            }
        };
        let number = u16::try_from(index).ok()?;
        let shared = self.rules.get_mut(index)?;
        if shared.users == 0 {
            shared.rule = rule;
        }
        shared.users += 1;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Table, WakeRule};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn addresses_have_their_instances() {
        let mut table = Table::default();
        let addresses = ["10.0.0.2", "10.0.0.3", "fd00::2"].map(|text| text.parse::<IpAddr>().unwrap());
        let ports = WakeRule::Ports([80].into());
        let rules = [WakeRule::Unicast, ports.clone(), ports.clone()];
        for ((address, rule), instance) in addresses.into_iter().zip(rules.clone()).zip(7..) {
            assert!(table.insert(address, instance, MAC, rule));
        }
        assert!(!table.insert(addresses[0], 1, MAC, WakeRule::Unicast));
        for ((address, rule), instance) in addresses.into_iter().zip(&rules).zip(7..) {
            let entry = table.get(address).unwrap();
            assert_eq!(
                (entry.instance, entry.slot(), table.rule(entry)),
                (instance, None, rule)
            );
        }
        table.get_mut(addresses[2]).unwrap().set_slot(Some(0));
        assert_eq!(table.get(addresses[2]).unwrap().slot(), Some(0));
        assert_eq!(table.remove(addresses[2]).map(|entry| entry.instance), Some(9));
        assert_eq!((table.remove(addresses[2]), table.len()), (None, 2));
        // A rule without users is replaced.
        table.remove(addresses[1]);
        assert!(table.insert(addresses[1], 1, MAC, WakeRule::NewConnections));
        assert_eq!(table.rules.len(), 2);
        assert_eq!(
            table.rule(table.get(addresses[1]).unwrap()),
            &WakeRule::NewConnections
        );
    }

    #[test]
    fn address_costs_some_tens_of_bytes() {
        let mut table = Table::default();
        for number in 0..100_000_u32 {
            let v4 = std::net::Ipv4Addr::from(0x0a00_0000 | number);
            assert!(table.insert(v4.into(), number, MAC, WakeRule::Unicast));
            assert!(table.insert(v4.to_ipv6_mapped().into(), number, MAC, WakeRule::Unicast));
        }
        // A table of the standard library fills at most 7/8 of a power of two, with a byte of control each.
        let bytes = |capacity: usize, entry: usize| (capacity * 8 / 7).next_power_of_two() * (entry + 1);
        assert!(bytes(table.v4.capacity(), 20) <= 100_000 * 30);
        assert!(bytes(table.v6.capacity(), 32) <= 100_000 * 48);
    }
}
