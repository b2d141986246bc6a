//! The REST API: HTTP requests on a Unix socket control the VMM. Of `vmm`, only the modules `config` and `control` are used.
//!
//! | module | contents |
//! |---|---|
//! | [`http`] | HTTP server, independent of the VMM |
//! | [`client`] | HTTP client, for `mayfly ctl` and the supervisor |
//! | [`schema`] | bodies of requests and responses |
//! | [`process`] | log, metrics file and identity of the process |
//! | [`metrics`] | formats and file of the metrics |
//! | [`request_log`] | messages in Firecracker's words |
//! | [`routes`] | handler of each method and path |
//! | [`config_file`] | the same handlers for the sections of a file |
//! | [`service`] | [`Api`]: server, routes and process, as a service of the event loop |

pub mod client;
pub mod config_file;
pub mod http;
pub mod metrics;
pub mod process;
pub mod request_log;
pub mod routes;
pub mod schema;
pub mod service;
#[cfg(test)]
mod testing;

pub use config_file::Error as ConfigFileError;
pub use process::Instance;
pub use service::Api;
