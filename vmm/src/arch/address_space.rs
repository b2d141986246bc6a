//! Address spaces of guests, in terms that all architectures have. Apart from the other types: models of other crates include the file.

/// Address space of a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSpace {
    /// Guest-physical addresses.
    Memory,
    /// Addresses of devices alone, which only some architectures have.
    Io,
}
