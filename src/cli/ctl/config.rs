//! How a VM is configured.

use serde_json::Value;

use super::limits::{mebibytes, show};
use super::table::{Table, cell};

/// Sections with tables of their own.
const SHOWN: [&str; 4] = ["machine-config", "boot-source", "drives", "network-interfaces"];

/// The answer to `GET /vm/config`.
pub(super) fn table(config: &Value) -> String {
    let mut sections = vec![
        section("machine", &fields(&config["machine-config"])),
        section("boot", &fields(&config["boot-source"])),
        section("drives", &drives(&config["drives"])),
        section("network interfaces", &interfaces(&config["network-interfaces"])),
    ];
    let rest = config.as_object().into_iter().flatten();
    for (name, value) in rest.filter(|(name, value)| !SHOWN.contains(&name.as_str()) && !value.is_null()) {
        sections.push(section(name, &fields(value)));
    }
    sections.join("\n")
}

fn section(name: &str, table: &Table) -> String {
    let text = table.to_string();
    let lines: String = text.lines().map(|line| format!("  {line}\n")).collect();
    if lines.is_empty() {
        return format!("{name}\n  none\n");
    }
    format!("{name}\n{lines}")
}

/// The fields that have a value.
fn fields(section: &Value) -> Table {
    let mut table = Table::new();
    let fields = section.as_object().into_iter().flatten();
    for (name, value) in fields.filter(|(_, value)| !value.is_null()) {
        match name.strip_suffix("_mib") {
            Some(name) => table.row(vec![name.to_owned(), mebibytes(value)]),
            None => table.row(vec![name.clone(), cell(value)]),
        }
    }
    table
}

fn drives(list: &Value) -> Table {
    let mut table = Table::headed(["id", "path", "root", "read-only", "cache", "engine", "limits"]);
    for drive in list.as_array().into_iter().flatten() {
        let of = |key: &str| cell(&drive[key]);
        table.row(vec![
            of("drive_id"),
            of("path_on_host"),
            of("is_root_device"),
            of("is_read_only"),
            of("cache_type"),
            of("io_engine"),
            show(&drive["rate_limiter"]),
        ]);
    }
    table.or_empty()
}

fn interfaces(list: &Value) -> Table {
    let mut table = Table::headed(["id", "device", "MAC", "MTU", "receive limits", "transmit limits"]);
    for interface in list.as_array().into_iter().flatten() {
        let of = |key: &str| cell(&interface[key]);
        table.row(vec![
            of("iface_id"),
            of("host_dev_name"),
            of("guest_mac"),
            of("mtu"),
            show(&interface["rx_rate_limiter"]),
            show(&interface["tx_rate_limiter"]),
        ]);
    }
    table.or_empty()
}
