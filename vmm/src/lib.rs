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
//! | [`vm`] | [`Vm`](vm::Vm): runs, and the event loop of the thread that owns it |
//! | [`control`] | [`Control`](control::Control): what an owner can have done with a VM, before its start and after |
//! | [`timeline`] | how long each phase took |
//!
//! # Threads
//! The main thread builds the machine, owns it, and runs the event loop. Each vCPU has a thread, which is started first of
//! all so that the first of them can ask KVM for the processor's features while the main thread makes the VM. There is no other.
//!
//! # Locks
//! In the order in which they are taken: that of a further window or event source of a device, that of the device
//! ([`devices::bus::SharedDevice`]), that of the interrupt controllers in this process, that of the routes that KVM knows. Each is
//! held for one access or one event. A device kicks a vCPU with its own lock held, the interrupt controllers without theirs; a
//! kick is a signal and takes none. The timeline and the log have locks of their own, under which no other is taken.
//!
//! # Threat model
//! The guest is hostile: every exit, port, address and byte of memory is its choice. It can end its own VM; it cannot make
//! this process crash or grow, nor keep the host busier than the vCPUs that it was given and some ten thousand timer events a
//! second. Images, initrds and command lines are untrusted too, and are checked before any of it is mapped. The host's user is
//! trusted not to cut an image short while it is mapped: the guest that touches what is gone ends with an error, and
//! reports on such ends read by a call that cannot fault; but a device that finds its rings there ends the process by SIGBUS.
//! The host's disks are trusted to answer: a drive on one that hangs keeps its lock, and the event loop may wait for that.

pub mod arch;
pub mod boot;
pub mod config;
pub mod control;
mod error_chain;
pub mod event_loop;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod persistence;
#[cfg(test)]
mod saved_format;
pub mod timeline;
pub mod vcpu;
pub mod vm;

pub use error_chain::ErrorChain;
pub use snapshot::GuestMemory;
