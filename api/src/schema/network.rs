//! Network interfaces.

use serde::{Deserialize, Serialize};
use vmm::config::{AddressNames, AddressRequest, MacAddress, NetBackend, NetConfig, UserNetwork};

use super::field::Rule;
use super::limiter::RateLimiter;
use super::macros::{choice, schema};

/// Minimum of the MTU, virtio 1.2 §5.1.4.1.
const MIN_MTU: u64 = 68;

/// Names of the fields for addresses.
pub(super) const ADDRESS_NAMES: AddressNames = AddressNames {
    guest_ip: "guest_ip",
    ip: "ip",
    guest_mac: "guest_mac",
    mac: "mac",
    pass: "pass",
};

choice! {
    /// Protocol that passes beside IPv4 and ARP.
    PassedProtocol {
        /// IPv6, whose addresses stay unchanged.
        Ipv6 = "ipv6",
    }
}

schema! {
    /// Network interface.
    #[derive(Deserialize, Serialize)]
    body NetworkInterface {
        /// Identifier, the same as in the path.
        #[schema(Id)]
        iface_id: String, update String;
        /// Name of the tap on the host. The kernel chooses a name if it is empty.
        host_dev_name: String;
        /// MAC address of the guest; random by default.
        #[pattern("^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")]
        guest_mac: Option<String>;
        /// MTU in the configuration space.
        mtu: Option<u16> => Rule::Range(MIN_MTU, u16::MAX as u64);
        /// IPv4 address of the guest, which the device rewrites to ip. Requires ip.
        #[serde(skip_serializing_if = "Option::is_none")]
        guest_ip: Option<String>;
        /// IPv4 address that the network sees in place of guest_ip. Not saved in snapshots.
        #[serde(skip_serializing_if = "Option::is_none")]
        ip: Option<String>;
        /// MAC address that the network sees in place of guest_mac. Requires ip. Not saved in snapshots.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[pattern("^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")]
        mac: Option<String>;
        /// Passes IPv6, which is dropped otherwise. Requires ip.
        #[serde(skip_serializing_if = "Option::is_none")]
        pass: Option<PassedProtocol>;
        /// Limits of packets to the guest.
        rx_rate_limiter: Option<RateLimiter>, update Option<RateLimiter>;
        /// Limits of packets from the guest.
        tx_rate_limiter: Option<RateLimiter>, update Option<RateLimiter>;
    }
    unsupported {
        /// No effect.
        allow_mmds_requests => Rule::Ignored("MMDS is not part of mayfly");
    }
    example "{iface_id: eth0, host_dev_name: tap0, guest_mac: '02:00:00:00:00:01', mtu: 1500, rx_rate_limiter: null, tx_rate_limiter: {bandwidth: {size: 1048576, refill_time: 100}}}";
    /// Change of a network interface.
    update NetworkInterfaceUpdate;
    example "{iface_id: eth0, rx_rate_limiter: {ops: {size: 0, refill_time: 0}}}";
}

impl NetworkInterface {
    /// Converts to the configuration of the VMM.
    ///
    /// # Errors
    /// A text for the client if the MAC address is invalid.
    pub fn into_config(self) -> Result<NetConfig, String> {
        let Self {
            iface_id,
            host_dev_name,
            guest_mac,
            mtu,
            guest_ip,
            ip,
            mac,
            pass,
            rx_rate_limiter,
            tx_rate_limiter,
        } = self;
        let guest_mac = guest_mac.as_deref().map(str::parse::<MacAddress>);
        let mac = mac.as_deref().map(str::parse::<MacAddress>);
        let request = AddressRequest {
            guest_ip,
            ip,
            // The device has this address in any case.
            guest_mac: None,
            mac: mac.transpose()?,
            pass_ipv6: pass.is_some(),
        };
        let addresses = request.check(&ADDRESS_NAMES).map_err(|error| error.to_string())?;
        Ok(NetConfig {
            id: iface_id,
            backend: NetBackend::Tap(host_dev_name),
            mac: guest_mac.transpose()?,
            mtu,
            receive: RateLimiter::limits(rx_rate_limiter),
            transmit: RateLimiter::limits(tx_rate_limiter),
            addresses,
            user: UserNetwork::default(),
        })
    }

    /// Converts from the configuration of the VMM. A backend other than a tap, which only the command line sets, has its name there.
    pub fn from_config(config: &NetConfig) -> Self {
        let NetConfig {
            id,
            backend,
            mac,
            mtu,
            receive,
            transmit,
            addresses,
            // Of a passt, which only the command line starts.
            user: _,
        } = config;
        let guest_mac = addresses.and_then(|addresses| addresses.guest_mac).or(*mac);
        Self {
            iface_id: id.clone(),
            host_dev_name: match backend {
                NetBackend::Tap(name) => name.clone(),
                // No interface has a colon in its name.
                NetBackend::Descriptor(_) | NetBackend::Stream(_) | NetBackend::User => backend.to_string(),
            },
            guest_mac: guest_mac.map(|mac| mac.to_string()),
            mtu: *mtu,
            guest_ip: addresses.map(|addresses| addresses.guest_ip.to_string()),
            ip: addresses.map(|addresses| addresses.ip.to_string()),
            mac: addresses.and_then(|addresses| addresses.mac.map(|mac| mac.to_string())),
            pass: addresses.and_then(|addresses| addresses.pass_ipv6.then_some(PassedProtocol::Ipv6)),
            rx_rate_limiter: RateLimiter::from_limits(*receive),
            tx_rate_limiter: RateLimiter::from_limits(*transmit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NetworkInterface;
    use crate::schema::read;

    fn interface(fields: &str) -> NetworkInterface {
        let body = format!(r#"{{"iface_id": "a", "host_dev_name": "tap0"{fields}}}"#);
        read(body.as_bytes()).unwrap()
    }

    #[test]
    fn addresses_are_kept() {
        let plain = r#", "guest_mac": "02:00:00:00:00:01""#;
        for fields in [
            plain.to_owned(),
            format!(r#"{plain}, "guest_ip": "10.0.0.2", "ip": "10.0.7.1""#),
            format!(
                r#"{plain}, "guest_ip": "10.0.0.2", "ip": "10.0.7.1", "mac": "02:00:00:00:07:01", "pass": "ipv6""#
            ),
        ] {
            let body = interface(&fields);
            let config = body.clone().into_config().unwrap();
            assert_eq!(NetworkInterface::from_config(&config), body);
        }
        let text = serde_json::to_string(&interface(plain)).unwrap();
        assert!(!text.contains("\"ip\""), "Firecracker has no such key: {text}");
    }

    #[test]
    fn incomplete_addresses_are_rejected() {
        for (fields, reason) in [
            (r#", "ip": "10.0.7.1""#, "ip requires guest_ip"),
            (r#", "guest_ip": "10.0.0.2""#, "guest_ip requires ip"),
            (r#", "mac": "02:00:00:00:07:01""#, "mac requires guest_ip"),
            (r#", "pass": "ipv6""#, "pass requires guest_ip"),
        ] {
            assert_eq!(interface(fields).into_config(), Err(reason.to_owned()));
        }
        let no_host = interface(r#", "guest_ip": "10.0.0.2", "ip": "224.0.0.1""#);
        let reason = no_host.into_config().unwrap_err();
        assert!(reason.starts_with(r#"ip="224.0.0.1" is invalid; "#), "{reason}");
    }
}
