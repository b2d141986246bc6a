//! All tables one after the other.

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;

use crate::arch::x86_64::handoff::Tables;
use crate::arch::x86_64::handoff::acpi::{dsdt, fadt, madt};
use crate::arch::x86_64::layout;

/// Bytes that the tables may take.
pub const CAPACITY: u64 = (layout::RESET_VECTOR & !0xfff) - layout::ACPI;

/// Who made the tables: six characters.
pub(super) const OEM: [u8; 6] = *b"MAYFLY";
/// Which machine they describe: eight characters.
pub(super) const OEM_TABLE: [u8; 8] = *b"MICROVM ";
/// Version of the tables.
pub(super) const OEM_REVISION: u32 = 1;

/// Tables begin at multiples of this.
const ALIGNMENT: usize = 16;
const HEADER: u32 = 36;

/// Builds what goes to [`layout::ACPI`]: RSDP first, then DSDT, FADT, MADT and XSDT.
pub fn build(tables: &Tables<'_>) -> Vec<u8> {
    // The RSDP holds the XSDT's address and the XSDT all others': each table goes behind those that it points to.
    let mut block = vec![0; Rsdp::len()];
    let dsdt = place(
        &mut block,
        &table(*b"DSDT", 2, &dsdt::definitions(tables.windows)),
    );
    let fadt = place(&mut block, &fadt::build(dsdt));
    let madt = place(&mut block, &table(*b"APIC", 5, &madt::structures(tables)));
    let entries: Vec<u8> = [fadt, madt].into_iter().flat_map(u64::to_le_bytes).collect();
    let xsdt = place(&mut block, &table(*b"XSDT", 1, &entries));

    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    block[..rsdp.len()].copy_from_slice(&rsdp);
    block
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table
}

/// Appends a table and returns its guest-physical address.
fn place(block: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    block.resize(block.len().next_multiple_of(ALIGNMENT), 0);
    let address = layout::ACPI + block.len() as u64;
    table.to_aml_bytes(block);
    address
}
