//! Network interfaces.

use serde::{Deserialize, Serialize};
use vmm::config::{MacAddress, NetBackend, NetConfig};

use super::field::Rule;
use super::limiter::RateLimiter;
use super::macros::schema;

/// Minimum of the MTU, virtio 1.2 §5.1.4.1.
const MIN_MTU: u64 = 68;

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
            rx_rate_limiter,
            tx_rate_limiter,
        } = self;
        let mac = guest_mac.as_deref().map(str::parse::<MacAddress>);
        Ok(NetConfig {
            id: iface_id,
            backend: NetBackend::Tap(host_dev_name),
            mac: mac.transpose()?,
            mtu,
            receive: RateLimiter::limits(rx_rate_limiter),
            transmit: RateLimiter::limits(tx_rate_limiter),
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
        } = config;
        Self {
            iface_id: id.clone(),
            host_dev_name: match backend {
                NetBackend::Tap(name) => name.clone(),
                // No interface has a colon in its name.
                NetBackend::Descriptor(_) | NetBackend::Stream(_) | NetBackend::User => backend.to_string(),
            },
            guest_mac: mac.map(|mac| mac.to_string()),
            mtu: *mtu,
            rx_rate_limiter: RateLimiter::from_limits(*receive),
            tx_rate_limiter: RateLimiter::from_limits(*transmit),
        }
    }
}
