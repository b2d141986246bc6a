//! The control socket: mayfly in the place of Firecracker, as its clients see it.
//!
//! | module | holds |
//! |---|---|
//! | [`http`] | a client that sees every byte |
//! | [`served`] | one mayfly behind a socket |
//! | [`phases`] | what may be asked when |
//! | [`lifecycle`] | start, pause, resume, end |
//! | [`change`] | drives and interfaces of a guest that runs |
//! | [`output`] | serial port, log and metrics |
//! | [`config_file`] | configuration files |
//! | [`process`] | flags, signals, the socket's file |
//! | [`replay`] | what orchestrators send |
//! | [`kata`] | the same of kata |
//! | [`snapshot`] | snapshots, and what is made of them |
//! | [`killed`] | who is killed while it makes a snapshot |
//! | [`disk`] | snapshots on a disk that does not take them |
//! | [`roundtrip`] | guests that notice what does not return |
//! | [`uffd`] | guests whose memory another process serves |
//! | [`race`] | who asks as soon as the socket is there |
//! | [`chroot`] | nothing but the binary and the devices |
//! | [`malformed`] | clients that do not behave |
//! | [`clients`] | clients that others wrote |
//! | [`snapshot_cli`] | snapshots by the commands |

mod change;
mod chroot;
mod clients;
mod config_file;
mod disk;
mod http;
mod kata;
pub mod killed;
mod lifecycle;
mod malformed;
mod output;
mod phases;
mod process;
mod race;
mod replay;
mod roundtrip;
pub mod served;
pub mod snapshot;
mod snapshot_cli;
mod uffd;
