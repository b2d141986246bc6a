//! Call instructions, Intel SDM volume 2, CALL.

use crate::arch::frames::CALL;

/// Returns true if a direct call reaches one address from the other. Most words on a stack are no such addresses.
pub fn is_near(one: u64, other: u64) -> bool {
    one.abs_diff(other) < 1 << 31
}

/// Returns true if `code` ends with a call: direct with 32 bits, or by a register or memory, whose operand has up to 6 bytes.
pub fn ends_with_call(code: [u8; CALL]) -> bool {
    let is_indirect = |length: usize| {
        let start = CALL - length;
        code[start] == 0xff && code[start + 1] >> 3 & 7 == 2
    };
    code[CALL - 5] == 0xe8 || [2, 3, 6, 7].into_iter().any(is_indirect)
}

#[cfg(test)]
mod tests {
    use super::{ends_with_call, is_near};

    #[test]
    fn calls_are_found() {
        for (code, is_call) in [
            // call by a displacement
            ([0x90, 0x90, 0x90, 0xe8, 0xe5, 0xff, 0xff, 0xff], true),
            // call *%rax; call *0x10(%rax); call *0x200000(%rip)
            ([0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0xd0], true),
            ([0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0x50, 0x10], true),
            ([0x90, 0x90, 0xff, 0x15, 0x00, 0x00, 0x20, 0x00], true),
            // jmp *%rax; jmp by a displacement
            ([0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0xe0], false),
            ([0x90, 0x90, 0x90, 0xe9, 0xe5, 0xff, 0xff, 0xff], false),
        ] {
            assert_eq!(ends_with_call(code), is_call, "{code:x?}");
        }
        assert!(is_near(0x1000, 0x10_0000) && !is_near(0x1000, 0x8000_1000));
    }
}
