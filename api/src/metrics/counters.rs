//! Counters of the API.

use serde::Serialize;
use vmm::control::OperationTimes;

use crate::http::Method;

/// Counters of the API since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Number of responses with the status 200 or 204.
    pub accepted: u64,
    /// Number of other responses.
    pub refused: u64,
}

/// Metrics of the process around the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMetrics {
    /// Responses by their status.
    pub counters: Counters,
    /// Requests by method and resource.
    pub requests: RequestCounts,
    /// Requests with a deprecated key.
    pub deprecated: u64,
    /// Durations of the last successful requests for an operation.
    pub operations: OperationTimes,
    /// Wall time and processor time of the start of the process in microseconds.
    pub startup_us: [u64; 2],
    /// Received SIGHUP signals.
    pub hangups: u64,
    /// Log messages that were dropped.
    pub missed_messages: u64,
}

/// Resource by the first segment of its path, with Firecracker's names for the number of requests and of failures.
pub(super) type Resource = (&'static str, &'static str, &'static str);

/// Resources of GET requests, whose failures Firecracker does not count.
pub(super) const GET: [(&str, &str); 5] = [
    ("", "instance_info_count"),
    ("machine-config", "machine_cfg_count"),
    ("mmds", "mmds_count"),
    ("version", "vmm_version_count"),
    ("hotplug", "hotplug_memory_count"),
];

/// Resources of PUT requests.
pub(super) const PUT: [Resource; 13] = [
    ("actions", "actions_count", "actions_fails"),
    ("boot-source", "boot_source_count", "boot_source_fails"),
    ("drives", "drive_count", "drive_fails"),
    ("logger", "logger_count", "logger_fails"),
    ("machine-config", "machine_cfg_count", "machine_cfg_fails"),
    ("cpu-config", "cpu_cfg_count", "cpu_cfg_fails"),
    ("metrics", "metrics_count", "metrics_fails"),
    ("network-interfaces", "network_count", "network_fails"),
    ("mmds", "mmds_count", "mmds_fails"),
    ("vsock", "vsock_count", "vsock_fails"),
    ("pmem", "pmem_count", "pmem_fails"),
    ("serial", "serial_count", "serial_fails"),
    ("hotplug", "hotplug_memory_count", "hotplug_memory_fails"),
];

/// Resources of PATCH requests.
pub(super) const PATCH: [Resource; 5] = [
    ("drives", "drive_count", "drive_fails"),
    ("network-interfaces", "network_count", "network_fails"),
    ("machine-config", "machine_cfg_count", "machine_cfg_fails"),
    ("mmds", "mmds_count", "mmds_fails"),
    ("hotplug", "hotplug_memory_count", "hotplug_memory_fails"),
];

/// Requests to one resource by one method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCount {
    /// All requests.
    pub count: u64,
    /// Rejected requests.
    pub fails: u64,
}

/// Requests by method and resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    pub(super) get: [RequestCount; GET.len()],
    pub(super) put: [RequestCount; PUT.len()],
    pub(super) patch: [RequestCount; PATCH.len()],
}

impl RequestCounts {
    /// Counts a request by `method` to `path`, which was rejected or not. Resources that Firecracker does not count are ignored.
    pub fn add(&mut self, method: &Method, path: &str, is_rejected: bool) {
        let path = path.strip_prefix('/').unwrap_or(path);
        let first = path.split('/').next().unwrap_or_default();
        let of = |resources: &[Resource]| resources.iter().position(|(name, ..)| *name == first);
        let count = match method {
            Method::Get => {
                let index = GET.iter().position(|(name, _)| *name == first);
                index.and_then(|index| self.get.get_mut(index))
            }
            Method::Put => of(&PUT).and_then(|index| self.put.get_mut(index)),
            Method::Patch => of(&PATCH).and_then(|index| self.patch.get_mut(index)),
            _ => None,
        };
        if let Some(count) = count {
            count.count += 1;
            count.fails += u64::from(is_rejected);
        }
    }
}
