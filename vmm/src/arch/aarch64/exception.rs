//! Entry of an exception at EL1: Arm Architecture Reference Manual, `AArch64.TakeException`.

/// Bits of PSTATE, as in SPSR_EL1.
const NZCV: u64 = 0xf << 28;
const DIT: u64 = 1 << 24;
const PAN: u64 = 1 << 22;
const SSBS: u64 = 1 << 12;
/// D, A, I and F: all exceptions are masked.
const MASKS: u64 = 0xf << 6;
/// EL1 with its own stack pointer.
const EL1H: u64 = 0b0101;
/// Exception level and choice of the stack pointer.
const MODE: u64 = 0b1111;
const EL1T: u64 = 0b0100;
/// AArch32.
const IS_32: u64 = 1 << 4;

/// SCTLR_EL1: an exception does not set PAN.
const SPAN: u64 = 1 << 23;
/// SCTLR_EL1: value of SSBS at an exception.
const DSSBS: u64 = 1 << 44;

/// Returns the offset of the vector of a synchronous exception, and PSTATE at its first instruction, for `pstate` before it.
pub fn enter(pstate: u64, sctlr: u64) -> (u64, u64) {
    let offset = match pstate & (IS_32 | MODE) {
        EL1H => 0x200,
        EL1T => 0,
        mode if mode & IS_32 == 0 => 0x400,
        _ => 0x600,
    };
    let pan = if sctlr & SPAN == 0 { PAN } else { pstate & PAN };
    let ssbs = if sctlr & DSSBS == 0 { 0 } else { SSBS };
    (offset, pstate & (NZCV | DIT) | pan | ssbs | MASKS | EL1H)
}

#[cfg(test)]
mod tests {
    use super::enter;

    /// SCTLR_EL1 with the bit that is set without PAN.
    const SCTLR: u64 = 1 << 23 | 1;

    #[test]
    fn vector_depends_on_level_and_stack() {
        for (mode, offset) in [(0b0101, 0x200), (0b0100, 0), (0, 0x400), (0b1_0000, 0x600)] {
            assert_eq!(enter(mode, SCTLR), (offset, 0x3c5), "{mode:#b}");
        }
    }

    #[test]
    fn flags_are_kept_and_step_is_not() {
        // N and C, DIT, PAN, SS and IL, and an unmasked IRQ.
        let pstate = 1 << 31 | 1 << 29 | 1 << 24 | 1 << 22 | 1 << 21 | 1 << 20 | 0b0101;
        let kept = 1 << 31 | 1 << 29 | 1 << 24 | 1 << 22 | 0x3c5;
        assert_eq!(enter(pstate, SCTLR), (0x200, kept));
    }

    #[test]
    fn control_register_sets_pan_and_ssbs() {
        assert_eq!(enter(0b0101, 1).1, 1 << 22 | 0x3c5);
        assert_eq!(enter(1 << 12 | 0b0101, SCTLR).1, 0x3c5);
        assert_eq!(enter(0b0101, SCTLR | 1 << 44).1, 1 << 12 | 0x3c5);
    }
}
