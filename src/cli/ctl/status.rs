//! Where a VM is in its life.

use serde_json::Value;

use super::limits::mebibytes;
use super::table::{Table, cell};

/// The answers to `GET /` and to `GET /vm/config` in short.
pub(super) fn table(instance: &Value, config: &Value) -> String {
    let machine = &config["machine-config"];
    let count = |key: &str| config[key].as_array().map_or(0, Vec::len).to_string();
    let program = format!(
        "{} {}",
        cell(&instance["app_name"]),
        cell(&instance["vmm_version"])
    );
    let mut table = Table::new();
    for (name, value) in [
        ("id", cell(&instance["id"])),
        ("state", cell(&instance["state"])),
        ("program", program),
        ("kernel", cell(&config["boot-source"]["kernel_image_path"])),
        ("vCPUs", cell(&machine["vcpu_count"])),
        ("memory", mebibytes(&machine["mem_size_mib"])),
        ("drives", count("drives")),
        ("interfaces", count("network-interfaces")),
    ] {
        table.row(vec![name.to_owned(), value]);
    }
    table.to_string()
}
