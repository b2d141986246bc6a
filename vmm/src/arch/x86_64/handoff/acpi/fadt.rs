//! How the machine is powered off and reset, and which legacy devices it has.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use crate::arch::x86_64::handoff::acpi::tables::{OEM, OEM_REVISION, OEM_TABLE};
use crate::arch::x86_64::handoff::fields::low;

/// Port of the sleep control register, which is the sleep status register as well; one byte. A guest powers off by
/// writing [`SLEEP_ENABLE`] with [`POWER_OFF_TYPE`](super::dsdt::POWER_OFF_TYPE) in bits 2 to 4; any write without
/// [`SLEEP_ENABLE`] is without effect, and reads are zero.
pub const SLEEP_PORT: u16 = 0x600;
/// SLP_EN of the sleep control register: ACPI 6.5, section 4.8.4.2.4.
pub const SLEEP_ENABLE: u8 = 1 << 5;

/// The i8042's command port, and the command by which it resets the machine.
const RESET_PORT: u64 = 0x64;
const RESET_COMMAND: u8 = 0xfe;

/// IA-PC boot architecture flags: ACPI 6.5, table 5.11. The real-time clock is there, as its flag would deny.
const LEGACY_DEVICES: u16 = 1 << 0;
const I8042: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;

/// Builds the table. `dsdt` is the DSDT's address, below 4 GiB.
pub fn build(dsdt: u64) -> FADT {
    let port = |address| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Unspecified)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        // Set: not a fixed-feature button. There is none in the DSDT either.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    // Both addresses, for readers that know only the narrow one.
    fadt.dsdt = low(dsdt).into();
    fadt.x_dsdt = dsdt.into();
    fadt.iapc_boot_arch = (LEGACY_DEVICES | I8042 | NO_VGA).into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_COMMAND;
    fadt.sleep_control_reg = port(u64::from(SLEEP_PORT));
    fadt.sleep_status_reg = port(u64::from(SLEEP_PORT));
    fadt.finalize()
}
