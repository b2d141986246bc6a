//! Network interfaces.

use serde::{Deserialize, Serialize};
use vmm::config::{MacAddress, NetBackend, NetConfig};

use super::{Field, RateLimiter, Schema, limiter};

/// Least MTU that a guest can be told, and the greatest.
const MTU: (u64, u64) = (68, u16::MAX as u64);

/// A network interface: `PUT`, and what `GET /vm/config` shows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct NetworkInterface {
    /// Its name.
    pub iface_id: String,
    /// The tap on the host's side; the kernel names one if this is empty.
    pub host_dev_name: String,
    /// Address of the guest's side.
    pub guest_mac: Option<String>,
    /// MTU that the guest is told.
    pub mtu: Option<u16>,
    /// What the guest may be sent.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What the guest may send.
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// Changes of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NetworkInterfaceUpdate {
    /// Its name.
    pub iface_id: String,
    /// What the guest may be sent.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What the guest may send.
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl Schema for NetworkInterface {
    const NAME: &'static str = "NetworkInterface";
    const FIELDS: &'static [Field] = &[
        Field::any("iface_id"),
        Field::any("host_dev_name"),
        Field::any("guest_mac"),
        Field::range("mtu", MTU.0, MTU.1),
        Field::object("rx_rate_limiter", limiter::FIELDS),
        Field::object("tx_rate_limiter", limiter::FIELDS),
        Field::ignored("allow_mmds_requests", "MMDS is not part of mayfly"),
    ];
}

impl Schema for NetworkInterfaceUpdate {
    const NAME: &'static str = "NetworkInterfaceUpdate";
    const FIELDS: &'static [Field] = &[
        Field::any("iface_id"),
        Field::object("rx_rate_limiter", limiter::FIELDS),
        Field::object("tx_rate_limiter", limiter::FIELDS),
    ];
}

impl NetworkInterface {
    /// What the VMM is to make.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn config(self) -> Result<NetConfig, String> {
        let mac = self.guest_mac.as_deref().map(str::parse::<MacAddress>);
        Ok(NetConfig {
            id: self.iface_id,
            backend: NetBackend::Tap(self.host_dev_name),
            mac: mac.transpose()?,
            mtu: self.mtu,
            receive: RateLimiter::limits(self.rx_rate_limiter),
            transmit: RateLimiter::limits(self.tx_rate_limiter),
        })
    }

    /// The interface of `config`. What is no tap has no name on the host.
    pub fn of(config: &NetConfig) -> Self {
        Self {
            iface_id: config.id.clone(),
            host_dev_name: match &config.backend {
                NetBackend::Tap(name) => name.clone(),
                _ => String::new(),
            },
            guest_mac: config.mac.map(|mac| mac.to_string()),
            mtu: config.mtu,
            rx_rate_limiter: RateLimiter::of(config.receive),
            tx_rate_limiter: RateLimiter::of(config.transmit),
        }
    }
}
