//! Library of the VMM: from a configuration to a machine, from a machine to a running VM, and from there to snapshots.
//!
//! A module imports only from modules below it:
//!
//! | module | content |
//! |---|---|
//! | [`event_loop`] | event loop of the thread that owns the VM |
//! | [`control`] | [`Control`](control::Control): all operations on a VM, before its start and after |
//! | [`persistence`] | creation, load and merge of snapshots |
//! | [`console`] | serial consoles to which clients attach |
//! | [`vm`] | [`Vm`](vm::Vm): a machine that runs or is paused |
//! | [`machine`] | [`Machine`](machine::Machine): memory, buses, devices and vCPUs |
//! | [`vcpu`] | vCPUs and their threads |
//! | [`arch`] | differences between x86_64 and aarch64, behind two traits |
//! | [`config`] | [`VmConfig`](config::VmConfig) as the user requests it, and [`VmSpec`](config::VmSpec), checked |
//! | [`boot`] | image formats and boot protocols: segments, their addresses, and the entry point |
//! | [`memory`] | guest memory: anonymous, mapped from files, or served by a fault handler |
//! | [`kvm`] | access to KVM, memory slots, kicks |
//! | [`identity`] | generation ID and randomness of each boot and load |
//! | [`timeline`] | record of the phases of the start |
//! | [`sampling`] | samples of the guest's execution |
//! | [`cancellation`] | cancellation of an operation by another thread |
//! | [`channel`] | messages between threads |
//! | [`private_socket`] | Unix sockets for this user alone |
//! | `system_call` | results of system calls |
//!
//! # A new kind of virtio device
//! The attached devices of a machine are one list. A new kind of device adds a row to each of these tables:
//!
//! 1. `device_kinds!` in `vmm/src/config/device.rs`: configuration, update, backend and name.
//! 2. `vmm/src/machine`: an arm of `open` in `attachments.rs`, an implementation of `Attachable` in `attachable.rs`, and in `recorder.rs`
//!    an implementation of `Recorder` and a variant of `DeviceCounters`.
//! 3. `ROUTES` in `api/src/routes/mod.rs`, which the API, its specification and the configuration file share.
//!
//! Section "A virtio device" of `docs/architecture.md` lists all other places.
//!
//! # Threads
//! The main thread builds the machine, owns it, and runs the event loop. Each vCPU has a thread. The vCPU threads start before the VM is
//! created, so that the first one can query the supported features meanwhile. A drive starts a worker thread at its first slow request. A
//! VM whose memory a fault handler serves has an I/O thread for its devices. An operation that may wait for a disk or a fault handler
//! has a thread while it runs. There is no other thread; an interface with a user
//! backend adds a child process, passt.
//!
//! # Locks
//! In the order of acquisition:
//!
//! 1. an event source, or the second address range of a device ([`devices::OffsetDevice`])
//! 2. the device ([`devices::bus::SharedDevice`])
//! 3. PIC and IOAPIC of a split irqchip
//! 4. the routes known to KVM
//!
//! Each is held for one access or one event, and no thread holds the locks of two devices. The bus requires no lock, because it does not
//! change after the build. The interrupt controllers release their lock before they kick a vCPU. Devices need not: a kick is a
//! signal and takes no lock. The lock of the [`PauseGate`](vcpu::PauseGate) is taken without any of these. No other lock is taken under
//! those of timeline and log.
//!
//! # Threat model
//! The guest is hostile: it chooses every exit, port, address and byte of memory. It can end its own VM. It cannot crash or grow this
//! process, nor use more of the host than its vCPUs and about ten thousand timer events a second. Images, initrds, command lines and
//! state files are untrusted, and are checked before use.
//!
//! A state file names the host sides of its devices: files, taps, sockets, descriptors, and passt. A load opens them, as Firecracker
//! does, and logs each at level info: its caller vouches for them. An untrusted load
//! ([`LoadSnapshotParams::untrusted`](persistence::LoadSnapshotParams::untrusted)) opens only host sides that the caller names, none
//! for writing that the caller names read-only, and no link in place of the files of the snapshot. All names are checked before one
//! is opened. Everything else in a state file is data for the guest and its machine, in either case.
//!
//! KVM accepts CPUID bits and MSRs that it does not announce. No load passes them to KVM: each saved vCPU is compared with the
//! answers of KVM on this host, whatever the header of the file states. The load fails, or removes them if its caller requests that.
//!
//! The user of the host is trusted not to truncate an image or a memory file while it is mapped. A guest that accesses the missing
//! part stops with an error, whose report reads guest memory without a fault. A device whose virtqueue lies there ends the process
//! ([`bus_error`](memory::bus_error)). The disks of the host are trusted to complete reads and writes: a drive whose disk hangs keeps its
//! lock, and the event loop may wait for it. Flush, discard and write zeroes hold no lock.

pub mod arch;
pub mod boot;
pub mod cancellation;
pub mod channel;
pub mod config;
pub mod console;
pub mod control;
pub mod debugger;
pub mod emergency;
mod error_chain;
pub mod event_loop;
pub mod identity;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod persistence;
pub mod private_socket;
pub mod sampling;
mod system_call;
pub mod timeline;
pub mod vcpu;
pub mod vm;

pub use error_chain::ErrorChain;
pub use snapshot::GuestMemory;
