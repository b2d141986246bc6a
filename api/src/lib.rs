//! The REST control socket: HTTP in, requests to the VMM out. It sees of `vmm` only its `config` and `control` modules.

pub mod http;
pub mod logger;
pub mod metrics;
