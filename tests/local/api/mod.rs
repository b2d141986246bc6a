//! The control socket: mayfly in the place of Firecracker, as its clients see it.
//!
//! | module | holds |
//! |---|---|
//! | [`http`] | a client that sees every byte |
//! | [`served`] | one mayfly behind a socket |
//! | [`phases`] | what may be asked when |
//! | [`life`] | start, pause, resume, end |
//! | [`change`] | drives and interfaces of a guest that runs |
//! | [`output`] | serial port, log and metrics |
//! | [`configured`] | configuration files |
//! | [`process`] | flags, signals, the socket's file |
//! | [`replay`] | what orchestrators send |
//! | [`kata`] | the same of kata |
//! | [`snapshot`] | snapshots, and what is made of them |
//! | [`killed`] | who is killed while it makes a snapshot |
//! | [`disk`] | snapshots on a disk that does not take them |
//! | [`returns`] | guests that notice what does not return |
//! | [`uffd`] | guests whose memory another process serves |
//! | [`race`] | who asks as soon as the socket is there |
//! | [`bare`] | nothing but the binary and the devices |
//! | [`robust`] | clients that do not behave |
//! | [`clients`] | clients that others wrote |
//! | [`by_hand`] | snapshots by the commands |

mod bare;
mod by_hand;
mod change;
mod clients;
mod configured;
mod disk;
mod http;
mod kata;
pub mod killed;
mod life;
mod output;
mod phases;
mod process;
mod race;
mod replay;
mod returns;
mod robust;
pub mod served;
pub mod snapshot;
mod uffd;
