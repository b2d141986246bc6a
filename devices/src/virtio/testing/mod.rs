//! A driver without a guest, for tests and benches, with virtqueues in real guest memory.
//!
//! [`FakeQueue`] is the driver's side of one virtqueue: valid chains with [`FakeQueue::add`], malformed ones with the
//! raw accesses. [`FakeDriver`] holds the queues of a device in one memory. It creates the
//! [`Activation`](super::Activation) of a single device, or starts a device through its transport. Errors are faults
//! of the test and panic.
//!
//! [`Race`] is a hostile driver on several CPUs: it changes rings, descriptors and data while the device works. Its
//! [`GuardedMemory`] shows a write outside guest memory.
//!
//! [`Stress`] is a correct driver on a CPU of its own, for the order of the accesses to the rings.

mod driver;
mod guarded;
mod interrupt;
mod queue;
mod race;
mod registers;
mod stress;

pub use driver::FakeDriver;
pub use guarded::GuardedMemory;
pub use interrupt::CountingInterrupt;
pub use queue::{Buffer, FakeQueue, INDIRECT, NEXT, RawDescriptor, Used, WRITE};
pub use race::Race;
pub use registers::{get, set};
pub use stress::{Stress, StressCounts};
