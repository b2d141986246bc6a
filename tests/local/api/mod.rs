//! The API socket: mayfly as a replacement of Firecracker, from the view of its clients.
//!
//! | module | subject |
//! |---|---|
//! | [`http`] | HTTP client that checks each byte |
//! | [`served`] | mayfly processes with an API socket, and helpers |
//! | [`phases`] | requests by instance state |
//! | [`preparation`] | VM of a waiting process |
//! | [`lifecycle`] | start, pause, resume, exit |
//! | [`change`] | updates of drives and interfaces of a running guest |
//! | [`addresses`] | clones with addresses of their own |
//! | [`crowd`] | two hundred clones with addresses of their own, and clones in each other's way |
//! | [`attack`] | answers while the guest attacks the VMM |
//! | [`slow_disk`] | answers while a request of the guest takes long |
//! | [`fuse`] | a disk whose requests the test releases |
//! | [`operations`] | answers while an operation of the VM waits |
//! | [`output`] | serial output, log and metrics |
//! | [`config_file`] | configuration files |
//! | [`process`] | options, signals, the socket file |
//! | [`replay`] | requests of orchestrators |
//! | [`kata`] | requests of kata |
//! | [`snapshot`] | snapshots and restored VMs |
//! | [`first_frames`] | frames that a load passes to the guest before those of the tap |
//! | [`clones`] | clones beside their source, and disks in use |
//! | [`identity`] | identity records of clones |
//! | [`tracking`] | diffs with dirty page tracking |
//! | [`killed`] | SIGKILL during snapshot creation |
//! | [`disk`] | snapshots on full, read-only and vanishing disks |
//! | [`suspend`] | suspends of idle VMs |
//! | [`status`] | status of vCPUs and devices |
//! | [`roundtrip`] | round trips of guests that detect lost or repeated state |
//! | [`uffd`] | guest memory from a fault handler |
//! | [`race`] | requests as soon as the socket exists |
//! | [`chroot`] | a root with only the binary, the image and devices |
//! | [`jailed`] | VMs in jails of mayfly-jailer |
//! | [`malformed`] | malformed requests, stalled and excess clients |
//! | [`clients`] | third-party clients |
//! | [`snapshot_cli`] | snapshots by the commands of mayfly |

mod addresses;
mod attack;
mod change;
mod chroot;
mod clients;
mod clones;
mod config_file;
mod crowd;
mod disk;
mod first_frames;
mod fuse;
pub mod http;
mod identity;
mod jailed;
mod kata;
pub mod killed;
mod lifecycle;
mod malformed;
mod operations;
mod output;
mod phases;
mod preparation;
mod process;
mod race;
mod replay;
mod roundtrip;
pub mod served;
mod slow_disk;
pub mod snapshot;
mod snapshot_cli;
mod status;
mod suspend;
mod tracking;
pub mod uffd;
