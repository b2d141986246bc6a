//! The 64-bit Linux protocol: one page of parameters, which the guest finds through RSI.
//!
//! Fields and offsets are those of Linux, Documentation/arch/x86/boot.rst and zero-page.rst.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use crate::arch::x86_64::handoff::fields::low;
use crate::arch::x86_64::handoff::write::Error;
use crate::arch::x86_64::handoff::{Tables, e820};
use crate::arch::x86_64::layout;
use crate::boot::LoadedImage;

const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS", little-endian.
const HEADER: u32 = 0x5372_6448;
/// Version 2.14, which has the RSDP's address.
const VERSION: u16 = 0x020e;
/// A boot loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// The protected-mode part is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// The kernel has the 64-bit entry point.
const KERNEL_64: u16 = 1 << 0;
const KERNEL_ALIGNMENT: u32 = 0x20_0000;
/// The shortest header that has the fields set here: version 2.06 ends with the length of the command line.
const MIN_HEADER: usize = 0x23c - 0x1f1;

/// Builds the page.
///
/// `length` is that of the command line without its NUL, and `size` that of the guest's memory, both in bytes.
///
/// # Errors
/// [`Error::SetupHeader`] when the image's header is cut short, [`Error::CommandLine`] when the kernel does not take a
/// command line of that length.
pub fn build(
    loaded: &LoadedImage,
    length: u32,
    size: u64,
    tables: &Tables<'_>,
) -> Result<boot_params, Error> {
    let mut header = header(loaded)?;
    let limit = header.cmdline_size;
    // The field is the kernel's limit in an image, and zero in a header made here.
    if limit != 0 && length > limit {
        return Err(Error::CommandLine {
            length: u64::from(length),
            limit: u64::from(limit),
        });
    }
    header.type_of_loader = UNDEFINED_LOADER;
    header.loadflags |= LOADED_HIGH;
    header.cmd_line_ptr = low(layout::COMMAND_LINE);
    // In an ELF image nothing says how long a command line may be, and unikernels take the field for the length of theirs.
    // In a bzImage it stays the limit that it is: memtest86+ looks for the end of its last option within it.
    if loaded.setup_header.is_none() {
        header.cmdline_size = length;
    }

    let mut parameters = boot_params::default();
    if let Some(initrd) = &loaded.initrd {
        let length = initrd.end - initrd.start;
        header.ramdisk_image = low(initrd.start);
        header.ramdisk_size = low(length);
        parameters.ext_ramdisk_image = low(initrd.start >> 32);
        parameters.ext_ramdisk_size = low(length >> 32);
    }
    parameters.hdr = header;
    if tables.acpi {
        parameters.acpi_rsdp_addr = layout::ACPI;
    }
    for (place, area) in parameters.e820_table.iter_mut().zip(e820::ram(size)) {
        *place = boot_e820_entry {
            addr: area.start,
            size: area.end - area.start,
            r#type: e820::RAM,
        };
        parameters.e820_entries += 1;
    }
    Ok(parameters)
}

/// The image's own header, or one that says what an ELF file cannot.
fn header(loaded: &LoadedImage) -> Result<setup_header, Error> {
    let Some(bytes) = &loaded.setup_header else {
        return Ok(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER,
            version: VERSION,
            kernel_alignment: KERNEL_ALIGNMENT,
            xloadflags: KERNEL_64,
            ..Default::default()
        });
    };
    if bytes.len() < MIN_HEADER {
        return Err(Error::SetupHeader {
            length: bytes.len(),
            shortest: MIN_HEADER,
        });
    }
    let mut header = setup_header::default();
    // Fields of a later version than the structure's are optional for a boot loader and stay zero.
    let known = bytes.len().min(header.as_slice().len());
    header.as_mut_slice()[..known].copy_from_slice(&bytes[..known]);
    Ok(header)
}
