//! Modules of devices and vmm whose order of memory accesses the models of this crate check, with the types of loom.
//!
//! The modules need nothing but each other: neither KVM nor guest memory. The tests are in `models`.

// The unit tests of the modules use threads of std.
#![cfg(not(test))]
#![allow(dead_code, reason = "the models use a part of each module")]

// The modules of vmm find those of devices by this name.
extern crate self as devices;

#[path = "../../vmm/src/arch/address_space.rs"]
mod address_space;
/// As in vmm.
pub mod arch {
    pub use crate::address_space::AddressSpace;
}
#[path = "../../vmm/src/cancellation.rs"]
pub mod cancellation;
#[path = "../../vmm/src/channel.rs"]
pub mod channel;
#[path = "../../vmm/src/machine/claim.rs"]
pub mod claim;
#[path = "../../devices/src/counter.rs"]
pub mod counter;
#[path = "../../vmm/src/vcpu/gate.rs"]
pub mod gate;
#[path = "../../devices/src/interrupt.rs"]
pub mod interrupt;
#[path = "../../vmm/src/kvm/kick_target.rs"]
pub mod kick_target;
#[path = "../../vmm/src/vcpu/requests.rs"]
pub mod requests;
#[path = "../../devices/src/sync.rs"]
pub mod sync;
#[path = "../../vmm/src/vcpu/unclaimed.rs"]
pub mod unclaimed;
#[path = "../../devices/src/virtio/interrupt.rs"]
pub mod virtio_interrupt;
#[path = "../../devices/src/virtio/queue/ordering.rs"]
pub mod virtqueue;

pub use counter::Counter;
