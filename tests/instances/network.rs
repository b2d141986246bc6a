//! Clones of one snapshot in a shared network.

use serde_json::{Value, json};

use crate::host::{GUEST, Supervisor, enter_namespace, ping, served};

/// Returns the description of an instance at `address`.
pub fn at(address: &str) -> Value {
    json!({
        "network_interfaces": [{"iface_id": "net0", "network_id": "blue", "ip": address, "guest_ip": GUEST}],
        "scale_to_zero": {"cooldown_time_ms": 100},
    })
}

/// Registers the network blue.
pub fn register_network(supervisor: &Supervisor) {
    let network = json!({
        "host_dev_name": "mtun0",
        "gateways": [{"ip": "10.1.0.1", "prefix_length": 16}],
        "max_taps": 4,
        "prepared_taps": 1,
    });
    supervisor.expect("PUT", "/networks/blue", Some(&network));
}

#[test]
fn clones_in_a_shared_network_keep_their_own_memory() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&[]);
    register_network(&supervisor);
    supervisor.register("one", at("10.1.0.7"));
    supervisor.register("two", at("10.1.0.8"));
    ping("10.1.0.7", 3);
    assert_eq!(supervisor.generation("two"), None);
    assert_eq!(supervisor.get("two")["wakes"], 0);
    supervisor.await_state("one", "suspended");
    ping("10.1.0.8", 1);
    supervisor.await_state("two", "suspended");
    let (one, two) = (served("10.1.0.7"), served("10.1.0.8"));
    assert_eq!((one.pings, two.pings), (3, 1));
    supervisor.await_state("one", "suspended");
    supervisor.await_state("two", "suspended");
}
