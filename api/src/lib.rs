//! The REST control socket: HTTP in, requests to the VMM out; and the client for it. It sees of `vmm` only its `config` and `control` modules.

pub mod client;
pub mod http;
pub mod logger;
pub mod metrics;
