//! Server of gdb's remote protocol for one VM, without KVM.
//!
//! | module | contents |
//! |---|---|
//! | `connection` | buffered connection to gdb |
//! | `debuggee` | [`Debuggee`], the contract of the VM |
//! | `layout` | core registers of the architectures as bytes |
//! | `session` | [`serve`], a session from attach to detach |
//! | `target` | the VM for the crate gdbstub |
//!
//! The VM supplies its registers as bytes in the order of its target description. Thread numbers are those of vCPUs, from 0; gdb
//! shows them from 1.

mod connection;
mod debuggee;
mod layout;
mod session;
mod target;

pub use connection::Stream;
pub use debuggee::{Action, Debuggee, PointKind, Stop, StopKind};
pub use gdbstub_arch::aarch64::reg::AArch64CoreRegs;
pub use gdbstub_arch::x86::reg::{X86_64CoreRegs, X86SegmentRegs, X87FpuInternalRegs};
pub use layout::Layout;
pub use session::{SessionEnd, serve};
