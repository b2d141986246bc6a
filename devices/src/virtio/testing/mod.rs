//! A driver without a guest, for tests and benches: real rings in real guest memory, at the device's mercy and the
//! other way round.
//!
//! [`FakeQueue`] is the driver's side of one queue, well-behaved by [`FakeQueue::add`] and hostile by the raw accesses.
//! [`FakeDriver`] lays several of them out in one memory, and either makes the [`Activation`](super::Activation) for a
//! device alone or brings one up through its transport. Whatever goes wrong in here is a mistake of the test, and panics.

mod driver;
mod interrupt;
mod queue;
mod registers;

pub use driver::FakeDriver;
pub use interrupt::CountingInterrupt;
pub use queue::{FakeQueue, INDIRECT, NEXT, Piece, RawDescriptor, Used, WRITE};
pub use registers::{get, set};
