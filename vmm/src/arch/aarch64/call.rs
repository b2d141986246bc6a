//! Call instructions, Arm ARM, section C4.1.

use crate::arch::frames::CALL;

/// Returns true if `code` ends with a call: BL, BLR, or one of BLRAA to BLRABZ.
pub fn ends_with_call(code: [u8; CALL]) -> bool {
    let instruction = code[CALL - 4..].iter().rev();
    let instruction = instruction.fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
    instruction & 0xfc00_0000 == 0x9400_0000
        || instruction & 0xffff_fc1f == 0xd63f_0000
        || instruction & 0xfeff_f800 == 0xd63f_0800
}

#[cfg(test)]
mod tests {
    use super::ends_with_call;

    #[test]
    fn calls_are_found() {
        for (instruction, is_call) in [
            (0x97ff_fff0_u32, true),
            (0xd63f_0060, true),
            // BLRAA X3, SP; BLRAAZ X3
            (0xd73f_087f, true),
            (0xd63f_087f, true),
            // B; BR X3; RET
            (0x17ff_fff0, false),
            (0xd61f_0060, false),
            (0xd65f_03c0, false),
        ] {
            let mut code = [0; 8];
            code[4..].copy_from_slice(&instruction.to_le_bytes());
            assert_eq!(ends_with_call(code), is_call, "{instruction:#x}");
        }
    }
}
