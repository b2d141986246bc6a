//! State of a vCPU as an ELF core has it.

use super::paging::Paging;
use super::registers::{
    FPCR, FPSR, PC, PSTATE, SCTLR_EL1, SP_EL0, SP_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1, V0, core_register, size,
};

/// Bits of PSTATE: EL1 with its own stack pointer.
const PSTATE_EL1H: u64 = 5;
const PSTATE_MODE: u64 = 0xf;

/// Saved registers: numbers, and values one after the other.
#[derive(Clone, Copy, Debug)]
pub struct SavedRegisters<'a> {
    /// Numbers.
    pub numbers: &'a [u64],
    /// Values.
    pub values: &'a [u8],
}

impl<'a> SavedRegisters<'a> {
    /// Returns the value of the register `number`.
    fn bytes(&self, number: u64) -> Option<&'a [u8]> {
        let mut start = 0;
        for saved in self.numbers {
            let end = start + size(*saved);
            if *saved == number {
                return self.values.get(start..end);
            }
            start = end;
        }
        None
    }

    /// Returns the value of a register of 64 bits, or 0 if it is not saved.
    fn get(&self, number: u64) -> u64 {
        let bytes = self.bytes(number).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    /// Returns the general registers, in the order of `struct user_pt_regs`.
    pub fn general(&self) -> Vec<u8> {
        let pstate = self.get(PSTATE);
        let sp = match pstate & PSTATE_MODE {
            PSTATE_EL1H => SP_EL1,
            _ => SP_EL0,
        };
        let numbered = (0..31).map(|number| self.get(core_register(2 * number)));
        let registers = numbered.chain([self.get(sp), self.get(PC), pstate]);
        registers.flat_map(u64::to_le_bytes).collect()
    }

    /// Returns the floating-point registers, in the order of `struct user_fpsimd_state`. `None` with SVE, whose state holds them in
    /// another form.
    pub fn float(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for number in 0..32 {
            bytes.extend(self.bytes(V0 + 4 * number)?);
        }
        bytes.extend(self.bytes(FPSR)?);
        bytes.extend(self.bytes(FPCR)?);
        // The end of the structure is padded.
        bytes.extend([0; 8]);
        Some(bytes)
    }

    /// Returns the registers that determine the translation of addresses.
    pub fn paging(&self) -> Paging {
        Paging {
            sctlr: self.get(SCTLR_EL1),
            tcr: self.get(TCR_EL1),
            tables: [self.get(TTBR0_EL1), self.get(TTBR1_EL1)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FPCR, FPSR, PC, PSTATE, SP_EL0, SP_EL1, SavedRegisters, TCR_EL1, V0, core_register};

    fn general(pstate: u64) -> Vec<u64> {
        let numbers: Vec<_> = (0..31)
            .map(|number| core_register(2 * number))
            .chain([SP_EL0, PC, PSTATE, SP_EL1])
            .collect();
        let values: Vec<_> = (100..133)
            .chain([pstate, 200])
            .flat_map(u64::to_le_bytes)
            .collect();
        let saved = SavedRegisters {
            numbers: &numbers,
            values: &values,
        };
        let bytes = saved.general();
        let words = bytes.chunks_exact(8);
        words
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn stack_pointer_is_that_of_mode() {
        let of_el1 = general(0x3c5);
        assert_eq!(of_el1.len(), 34);
        assert_eq!(of_el1[..31], (100..131).collect::<Vec<_>>());
        assert_eq!(of_el1[31..], [200, 132, 0x3c5]);
        assert_eq!(general(0x3c4)[31], 131);
        assert_eq!(general(0)[31], 131);
    }

    #[test]
    fn float_registers_need_all_vectors() {
        let mut numbers: Vec<_> = (0..32).map(|number| V0 + 4 * number).collect();
        numbers.extend([FPSR, FPCR]);
        let values: Vec<_> = (0..520_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        let float = |numbers: &[u64]| {
            SavedRegisters {
                numbers,
                values: &values,
            }
            .float()
        };
        let bytes = float(&numbers).unwrap();
        assert_eq!(bytes.len(), 528);
        assert_eq!(bytes[..520], values);
        assert_eq!(float(&numbers[1..]), None);
    }

    #[test]
    fn damaged_state_reads_as_zero() {
        let saved = SavedRegisters {
            numbers: &[PC, TCR_EL1],
            values: &[7; 12],
        };
        assert_eq!(saved.get(PC), 0x0707_0707_0707_0707);
        assert_eq!(saved.paging().tcr, 0);
    }
}
