//! The REST control socket: HTTP in, requests to the VMM out. It sees of `vmm` only its `config` and `control` modules.
//!
//! | module | holds |
//! |---|---|
//! | [`http`] | the server, which knows of no VM |
//! | [`client`] | the other side, for `mayfly ctl` |
//! | [`schema`] | the bodies of requests and answers |
//! | [`routes`] | what each method and path does |
//! | [`service`] | [`Api`]: all of it, for the event loop of a VM |
//! | [`config_file`] | the same requests from a file |
//! | [`logger`], [`metrics`] | what a client may have logged and counted |

pub mod client;
pub mod config_file;
pub mod http;
pub mod logger;
pub mod metrics;
pub mod routes;
pub mod schema;
pub mod service;
#[cfg(test)]
mod testing;

pub use config_file::Error as ConfigFileError;
pub use service::{Api, Instance};
