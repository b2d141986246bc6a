//! Registration of shared networks, and their use by instances.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

use serde_json::{Map, Value};
use vmm::ErrorChain;

use super::config::{Config, Interface, Link};
use super::core::{Core, Source};
use super::journal::Subject;
use super::lifecycle::Cause;
use super::links::{PoolTap, addresses, mac, rule};
use super::live::WakeFrames;
use super::net::{Network, Wake};
use super::networks::{Member, NETWORK, open};
use super::register::{Rejection, check_id};
use super::registry::{Key, State};

impl Core {
    /// Registers the network `id`.
    ///
    /// # Errors
    /// A rejection with the reason.
    pub fn register_network(&mut self, id: &str, body: &[u8]) -> Result<(), Rejection> {
        check_id(id)?;
        let config = NETWORK.parse(body).map_err(Rejection::invalid)?;
        if self.networks.0.contains_key(id) {
            return Err(Rejection::conflict(format!(
                "cannot register the network {id:?}: it exists; delete it first"
            )));
        }
        let network = open(&config).map_err(Rejection::invalid)?;
        self.write(Subject::Network, id, Some(Value::Object(config.clone())))
            .map_err(Rejection::unavailable)?;
        self.add_network(id, config, Some(network))
            .map_err(Rejection::unavailable)
    }

    fn add_network(
        &mut self,
        id: &str,
        config: Map<String, Value>,
        network: Option<Network>,
    ) -> Result<(), String> {
        let number = self.next_network;
        self.next_network += 1;
        if let Some(network) = &network {
            let key = Key {
                index: number,
                generation: 0,
            };
            let watched = self.watch(Source::Network(key), network.fd().as_raw_fd());
            watched.map_err(|error| format!("cannot watch the TUN: {error}"))?;
        }
        let member = Member {
            network,
            number,
            config,
        };
        self.networks.0.insert(id.into(), member);
        Ok(())
    }

    /// Opens the networks of the journal.
    pub fn open_networks(&mut self, registered: BTreeMap<String, Value>) {
        for (id, value) in registered {
            let opened = NETWORK.accept(value).and_then(|config| match open(&config) {
                Ok(network) => self.add_network(&id, config, Some(network)),
                Err(reason) => {
                    log::error!("standby: network {id}: {reason}");
                    self.add_network(&id, config, None)
                }
            });
            if let Err(reason) = opened {
                log::error!("standby: network {id}: {reason}");
            }
        }
    }

    /// Deletes a network without instances.
    ///
    /// # Errors
    /// A rejection with the reason.
    pub fn delete_network(&mut self, id: &str) -> Result<(), Rejection> {
        let Some(member) = self.networks.0.get(id) else {
            return Err(Rejection {
                status: 404,
                reason: format!("cannot find the network {id:?}: it is not registered"),
            });
        };
        let count = member.network.as_ref().map_or(0, Network::len);
        if count > 0 {
            let reason = format!(
                "cannot delete the network {id:?}: it has {count} addresses; delete their instances first"
            );
            return Err(Rejection::conflict(reason));
        }
        self.write(Subject::Network, id, None)
            .map_err(Rejection::unavailable)?;
        self.networks.0.remove(id);
        Ok(())
    }

    /// Registers the addresses of an instance in its networks.
    ///
    /// # Errors
    /// A text with the reason; no address is registered then.
    pub fn join_networks(&mut self, key: Key, config: &Config) -> Result<(), String> {
        let mut joined = Vec::new();
        for (interface, id) in shared(config) {
            for address in addresses(interface) {
                let network = self.networks.get_mut(id);
                let result = network.and_then(|network| {
                    let registered =
                        network.register(address, key.index, mac(interface), rule(&config.wake_on));
                    registered.map_err(|error| ErrorChain(&error).to_string())
                });
                if let Err(reason) = result {
                    for (id, address) in joined {
                        let _ = self
                            .networks
                            .get_mut(id)
                            .map(|network| network.unregister(address));
                    }
                    return Err(reason);
                }
                joined.push((id, address));
            }
        }
        Ok(())
    }

    /// Removes the addresses of a deleted instance from its networks.
    pub fn leave_networks(&mut self, config: &Config) {
        for (interface, id) in shared(config) {
            for address in addresses(interface) {
                let Ok(network) = self.networks.get_mut(id) else {
                    continue;
                };
                let left = network
                    .release(address, &mut self.scratch)
                    .and_then(|()| network.unregister(address));
                if let Err(error) = left {
                    log::warn!("standby: {address} stays in network {id}: {}", ErrorChain(&error));
                }
            }
        }
    }

    /// Gives an instance taps of its networks. Their first frames go to its process.
    ///
    /// # Errors
    /// A text with the reason, for example without a free tap.
    pub fn assign_taps(&mut self, key: Key, config: &Config) -> Result<(), String> {
        for (interface, id) in shared(config) {
            let address = addresses(interface).next().ok_or("an interface has no address")?;
            let links = self.registry.get(key).map(|entry| &entry.links);
            if links.is_none_or(|links| links.pool.iter().any(|tap| *tap.interface == *interface.id)) {
                continue;
            }
            let assigned = self.networks.get_mut(id)?.assign(address, &mut self.scratch);
            let assigned = assigned.map_err(|error| ErrorChain(&error).to_string())?;
            let Some(entry) = self.registry.get_mut(key) else {
                continue;
            };
            entry.links.pool.push(PoolTap {
                interface: interface.id.as_str().into(),
                network: id.into(),
                address,
                name: assigned.name,
                tap: Some(assigned.tap),
            });
            if let Some(live) = &mut entry.live {
                let excess = live.frames.add(&interface.id, assigned.frames);
                self.counters.drop_frames(excess);
            }
        }
        Ok(())
    }

    /// Takes the taps of an instance without a process back, and drops frames that wait for it.
    pub fn release_taps(&mut self, key: Key) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        for tap in std::mem::take(&mut entry.links.pool) {
            // Before the network opens it again.
            drop(tap.tap);
            let Ok(network) = self.networks.get_mut(&tap.network) else {
                continue;
            };
            if let Err(error) = network.release(tap.address, &mut self.scratch) {
                log::warn!("standby: cannot release tap {}: {}", tap.name, ErrorChain(&error));
            }
        }
    }

    /// Drops the packets of an instance that does not wake after all.
    pub fn abandon_packets(&mut self, config: &Config) {
        for (interface, id) in shared(config) {
            for address in addresses(interface) {
                if let Ok(network) = self.networks.get_mut(id) {
                    let _ = network.abandon(address);
                }
            }
        }
    }

    /// Notes the taps of a process of an earlier supervisor.
    pub fn adopt_taps(&mut self, key: Key, config: &Config, names: &[&str]) {
        for ((interface, id), name) in shared(config).zip(names) {
            let Some(address) = addresses(interface).next() else {
                continue;
            };
            let adopted = self.networks.get_mut(id).and_then(|network| {
                network
                    .adopt(address, name)
                    .map_err(|error| ErrorChain(&error).to_string())
            });
            let Some(entry) = self.registry.get_mut(key) else {
                return;
            };
            match adopted {
                Ok(()) => entry.links.pool.push(PoolTap {
                    interface: interface.id.as_str().into(),
                    network: id.into(),
                    address,
                    name: (*name).to_owned(),
                    tap: None,
                }),
                Err(reason) => log::error!("standby: {} runs without its tap {name}: {reason}", entry.id),
            }
        }
    }

    /// Removes the routes to instances whose processes have ended without a supervisor.
    pub fn reclaim_taps(&mut self) {
        for (id, member) in &mut self.networks.0 {
            let Some(network) = &mut member.network else {
                continue;
            };
            if let Err(error) = network.reclaim() {
                log::error!("standby: network {id}: {}", ErrorChain(&error));
            }
        }
    }

    /// Wakes the instances for which the TUN of a network has packets.
    pub fn read_network(&mut self, number: u32) {
        let member = self
            .networks
            .0
            .values_mut()
            .find(|member| member.number == number);
        let Some(network) = member.and_then(|member| member.network.as_mut()) else {
            return;
        };
        match network.on_readable(&mut self.scratch) {
            Ok(wakes) => self.wake_all(wakes),
            Err(error) => log::error!("standby: {}", ErrorChain(&error)),
        }
    }

    /// Wakes the instances that packets have woken which other operations have found.
    pub fn wake_by_networks(&mut self) {
        let wakes: Vec<_> = self
            .networks
            .0
            .values_mut()
            .filter_map(|member| member.network.as_mut())
            .flat_map(Network::take_wakes)
            .collect();
        self.wake_all(wakes);
    }

    fn wake_all(&mut self, wakes: Vec<Wake>) {
        for wake in wakes {
            if let Some(key) = self.registry.key_at(wake.instance) {
                let is_failed = self
                    .registry
                    .get(key)
                    .is_some_and(|entry| entry.state == State::Failed);
                match is_failed {
                    true => {
                        let config = self.registry.get(key).and_then(|entry| entry.parse().ok());
                        if let Some(config) = config {
                            self.abandon_packets(&config);
                        }
                    }
                    false => self.wake(key, Cause::Frame, WakeFrames::default()),
                }
            }
        }
    }
}

/// Returns the interfaces in shared networks, with the identifiers of these.
fn shared(config: &Config) -> impl Iterator<Item = (&Interface, &str)> {
    config
        .interfaces
        .iter()
        .filter_map(|interface| match &interface.link {
            Link::Network(id) => Some((interface, id.as_str())),
            Link::Tap(_) => None,
        })
}
