//! How the machine is powered off and reset, and which legacy devices it has.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use devices::{i8042, power};

use crate::arch::x86_64::handoff::acpi::tables::{OEM, OEM_REVISION, OEM_TABLE};
use crate::arch::x86_64::handoff::fields::low;

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
    fadt.reset_reg = port(i8042::COMMAND_PORT);
    fadt.reset_value = i8042::RESET;
    fadt.sleep_control_reg = port(power::SLEEP_PORT);
    fadt.sleep_status_reg = port(power::SLEEP_PORT);
    fadt.finalize()
}
