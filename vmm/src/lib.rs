//! From a configuration to a machine, and from a machine to a running guest.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | [`VmConfig`](config::VmConfig), what the user asks for, and [`VmSpec`](config::VmSpec), the same after it was checked |
//! | [`kvm`] | the way into KVM, memory slots |
//! | [`memory`] | guest memory: fresh, or mapped from files |
//! | [`boot`] | image formats and boot protocols: what is loaded where, and where the guest starts |
//! | [`arch`] | all that differs between x86_64 and aarch64, behind two traits |
//! | [`vcpu`] | vCPUs and their threads |
//! | [`machine`] | [`Machine`](machine::Machine): built and never run |
//! | [`vm`] | [`Vm`](vm::Vm): runs, and the event loop that owns it |
//! | [`timeline`] | how long each phase took |
//!
//! # Threads
//! The main thread builds the machine, owns it, and runs the event loop. Each vCPU has a thread, which is started first of
//! all so that the first of them can ask KVM for the processor's features while the main thread makes the VM. There is no other.
//!
//! # Locks
//! A device is behind one mutex ([`devices::bus::SharedDevice`]), taken for one access or one event. The interrupt
//! controllers in this process are behind one more, which a device may take while it holds its own. No lock is held while
//! a vCPU is kicked. There are no others.
//!
//! # Threat model
//! The guest is hostile: every exit, port, address and byte of memory is its choice. It can end its own VM; it cannot make
//! this process crash, wait, or grow. Images, initrds and command lines are untrusted too, and are checked before any of
//! it is mapped. The host's user and its files are trusted not to change an image while it is mapped; if that happens, the VM
//! ends with an error.

pub mod arch;
pub mod boot;
mod chain;
pub mod config;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod timeline;
pub mod vcpu;
pub mod vm;

pub use chain::Chain;
pub use snapshot::GuestMemory;
