//! Saved state of a vCPU as an ELF core has it.

use super::mappings::{Error, Mappings};

/// Saved state of a vCPU, for an ELF core. The registers are those of Linux's `elf_gregset_t` and `elf_fpregset_t`.
pub trait CoreState {
    /// Machine in the header of the core.
    const MACHINE: u16;
    /// Address that the processor never translates, at which a core shows guest-physical memory.
    const PHYSICAL_WINDOW: u64;

    /// Registers that determine the translation of addresses.
    type Paging: PartialEq;

    /// Returns true if the guest has started the vCPU.
    fn is_started(&self) -> bool;

    /// Returns the general registers.
    fn general_registers(&self) -> Vec<u8>;

    /// Returns the floating-point registers; none if the state holds them in another form.
    fn float_registers(&self) -> Option<Vec<u8>>;

    /// Returns the registers that determine the translation of addresses. vCPUs with equal ones have the same mappings.
    fn paging(&self) -> Self::Paging;

    /// Adds the mappings of the page tables, or of all addresses if the processor does not translate them.
    ///
    /// # Errors
    /// [`Error`]
    fn add_mappings(&self, mappings: &mut Mappings<'_>) -> Result<(), Error>;
}
