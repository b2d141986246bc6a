//! What the host's processor is.

use std::arch::x86_64::__cpuid;

/// The processor in words that two hosts have in common when a guest can go from one to the other: vendor, family, model.
/// CPUID leaves 0 and 1, an exit each where this host is a virtual machine.
pub fn processor() -> String {
    let vendor = __cpuid(0);
    let name: Vec<u8> = [vendor.ebx, vendor.edx, vendor.ecx]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    let (family, model) = family_and_model(__cpuid(1).eax);
    let name = String::from_utf8_lossy(&name);
    format!("{name} family {family:#x} model {model:#x}")
}

/// The extended fields count for family 15, those of the model for family 6 too.
fn family_and_model(signature: u32) -> (u32, u32) {
    let field = |low: u32, bits: u32| signature >> low & ((1 << bits) - 1);
    let family = match field(8, 4) {
        15 => 15 + field(20, 8),
        family => family,
    };
    let model = match field(8, 4) {
        6 | 15 => field(16, 4) << 4 | field(4, 4),
        _ => field(4, 4),
    };
    (family, model)
}

#[cfg(test)]
mod tests {
    use super::{family_and_model, processor};

    #[test]
    fn signatures_are_taken_apart_as_the_manuals_say() {
        assert_eq!(family_and_model(0x000c_06f2), (6, 0xcf));
        assert_eq!(family_and_model(0x00a2_0f12), (0x19, 0x21));
        assert_eq!(family_and_model(0x0000_0543), (5, 4));
    }

    #[test]
    fn this_host_has_a_processor() {
        let name = processor();
        assert!(name.contains(" family 0x"), "{name}");
    }
}
