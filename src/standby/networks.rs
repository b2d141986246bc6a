//! Shared networks: one TUN for all sleepers of a network.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};
use vmm::ErrorChain;

use super::net::{Network, NetworkSetup};
use super::schema::{Kind, Schema, optional, required};

const GATEWAY: Schema = Schema {
    name: "Gateway",
    about: "Address of the host in the network, with the range of the instances.",
    fields: &[
        required("ip", Kind::Text(39), "IPv4 or IPv6 address."),
        required(
            "prefix_length",
            Kind::Integer(0, 128),
            "Length of the network's prefix in bits.",
        ),
    ],
};

/// Body of `PUT /networks/{id}`.
pub const NETWORK: Schema = Schema {
    name: "Network",
    about: "Network whose sleeping instances share one layer-3 TUN. An instance that wakes gets a tap from a pool, and a host route.",
    fields: &[
        required(
            "host_dev_name",
            Kind::Text(15),
            "Name of the TUN, which is created if it does not exist.",
        ),
        required("gateways", Kind::Objects(&GATEWAY, 8), "Addresses of the host."),
        optional(
            "tap_prefix",
            Kind::Text(10),
            "Start of the names of the taps; a number follows. Default: host_dev_name and t.",
        ),
        optional(
            "max_taps",
            Kind::Integer(1, 100_000),
            "Maximum number of taps, which is that of running instances. Default: 1000.",
        ),
        optional(
            "prepared_taps",
            Kind::Integer(0, 1000),
            "Number of taps that are created in advance. Default: 8.",
        ),
    ],
};

/// Schemas of this file.
#[cfg(test)]
pub const SCHEMAS: [&Schema; 2] = [&NETWORK, &GATEWAY];

/// Networks by their identifiers.
#[derive(Default)]
pub struct Networks(pub BTreeMap<Box<str>, Member>);

/// A network and its registration.
pub struct Member {
    /// None if it could not be opened at the start.
    pub network: Option<Network>,
    /// Number in the events of its TUN.
    pub number: u32,
    /// Its registration.
    pub config: Map<String, Value>,
}

impl Networks {
    /// Returns an open network.
    ///
    /// # Errors
    /// A text if there is none.
    pub fn get_mut(&mut self, id: &str) -> Result<&mut Network, String> {
        let member = self.0.get_mut(id);
        let missing = || {
            format!(
                "cannot find the network {id:?}: it is not registered, or cannot be opened; see PUT /networks"
            )
        };
        member
            .and_then(|member| member.network.as_mut())
            .ok_or_else(missing)
    }

    /// Returns identifiers and registrations, with the numbers of addresses.
    pub fn list(&self) -> Vec<Value> {
        self.0.iter().map(|(id, member)| member.describe(id)).collect()
    }

    /// Returns one registration.
    pub fn describe(&self, id: &str) -> Option<Value> {
        self.0.get(id).map(|member| member.describe(id))
    }

    /// Returns the sums of the counters: packets kept, ignored, to unknown addresses, dropped.
    pub fn counters(&self) -> [u64; 4] {
        let networks = self.0.values().filter_map(|member| member.network.as_ref());
        networks.fold([0; 4], |sums, network| {
            let counters = network.counters();
            let values = [
                counters.kept,
                counters.ignored,
                counters.unknown,
                counters.dropped,
            ];
            std::array::from_fn(|index| sums[index] + values[index])
        })
    }
}

impl Member {
    fn describe(&self, id: &str) -> Value {
        let addresses = self.network.as_ref().map(Network::len);
        json!({"id": id, "addresses": addresses, "config": self.config})
    }
}

/// Opens a network.
///
/// # Errors
/// A text with the reason, for example without CAP_NET_ADMIN.
pub fn open(config: &Map<String, Value>) -> Result<Network, String> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let number = |key: &str, default: usize| {
        let given = config.get(key).and_then(Value::as_u64);
        given
            .and_then(|number| usize::try_from(number).ok())
            .unwrap_or(default)
    };
    let name = text("host_dev_name").unwrap_or_default().to_owned();
    let gateways = config
        .get("gateways")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let gateways = gateways.map(|gateway| -> Result<(IpAddr, u8), String> {
        let ip = gateway["ip"].as_str().unwrap_or_default();
        let address: IpAddr = ip
            .parse()
            .map_err(|_| format!("gateways: {ip:?} is no IP address"))?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let prefix = gateway["prefix_length"]
            .as_u64()
            .and_then(|length| u8::try_from(length).ok());
        let prefix = prefix.filter(|length| *length <= max);
        Ok((
            address,
            prefix.ok_or_else(|| format!("gateways: the prefix of {ip} has at most {max} bits"))?,
        ))
    });
    let setup = NetworkSetup {
        gateways: gateways.collect::<Result<_, _>>()?,
        tap_prefix: text("tap_prefix").map_or_else(|| format!("{name}t"), str::to_owned),
        name,
        max_taps: number("max_taps", 1000),
        persistent: true,
    };
    let network = Network::open(setup).and_then(|mut network| {
        network.prepare_taps(number("prepared_taps", 8))?;
        Ok(network)
    });
    network.map_err(|error| ErrorChain(&error).to_string())
}
