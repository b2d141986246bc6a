//! Registers of vCPUs by their numbers in the KVM API: size, name, and restore.

use std::io;

use snapshot::persist::Error;

use crate::arch::CpuCheck;

/// Section of the vCPU in errors.
const COMPONENT: &str = "aarch64-vcpu";

/// Fields of a number: KVM API, `KVM_SET_ONE_REG`.
const ARM64: u64 = 0x6000_0000_0000_0000;
const SIZE_SHIFT: u32 = 52;
const KIND_SHIFT: u32 = 16;

/// Kinds.
const CORE: u64 = 0x10;
const CACHE: u64 = 0x11;
const SYSTEM: u64 = 0x13;
const FIRMWARE: u64 = 0x14;
const SVE: u64 = 0x15;
const FIRMWARE_FEATURES: u64 = 0x16;

/// Counters. KVM API: the number of the virtual counter is that of CNTV_CVAL_EL0, and vice versa.
pub const VIRTUAL_COUNTER: u64 = system_register(3, 3, 14, 3, 2);
/// Physical counter.
pub const PHYSICAL_COUNTER: u64 = system_register(3, 3, 14, 0, 1);
/// Bitmap of the vector lengths of SVE, `KVM_REG_ARM64_SVE_VLS`: 512 bits.
pub const VECTOR_LENGTHS: u64 = ARM64 | 6 << SIZE_SHIFT | SVE << KIND_SHIFT | 0xffff;

/// First numbers of vectors, predicates and first-fault register of SVE, in units of slices of 2048 bits.
const SVE_PREDICATES: u64 = 0x400;
const SVE_FIRST_FAULT: u64 = 0x600;

/// First general register, by its index in `struct kvm_regs`, which counts words of 32 bits: KVM API, `KVM_SET_ONE_REG`.
pub const X0: u64 = core_register(0);
/// Stack pointer of EL0.
pub const SP_EL0: u64 = core_register(62);
/// Program counter.
pub const PC: u64 = core_register(64);
/// Processor state.
pub const PSTATE: u64 = core_register(66);
/// Stack pointer of EL1.
pub const SP_EL1: u64 = core_register(68);
/// First vector register. The others follow at each fourth word.
pub const V0: u64 = core_register_128(V0_INDEX);
/// Floating-point status register.
pub const FPSR: u64 = core_register_32(FPSR_INDEX);
/// Floating-point control register.
pub const FPCR: u64 = core_register_32(FPSR_INDEX + 1);

/// Registers of the translation of addresses, by op0, op1, CRn, CRm and op2.
pub const SCTLR_EL1: u64 = system_register(3, 0, 1, 0, 0);
/// Tables of the lower half of the addresses.
pub const TTBR0_EL1: u64 = system_register(3, 0, 2, 0, 0);
/// Tables of the upper half.
pub const TTBR1_EL1: u64 = system_register(3, 0, 2, 0, 1);
/// Format of the tables.
pub const TCR_EL1: u64 = system_register(3, 0, 2, 0, 2);

/// Returns the number of a system register of 64 bits.
pub const fn system_register(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    let number = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
    ARM64 | 3 << SIZE_SHIFT | SYSTEM << KIND_SHIFT | number
}

/// Returns the number of a core register of 64 bits by its index in `struct kvm_regs`, which counts words of 32 bits.
pub const fn core_register(index: u64) -> u64 {
    ARM64 | 3 << SIZE_SHIFT | CORE << KIND_SHIFT | index
}

/// Returns the number of a core register of 32 bits by its index in `struct kvm_regs`.
pub const fn core_register_32(index: u64) -> u64 {
    ARM64 | 2 << SIZE_SHIFT | CORE << KIND_SHIFT | index
}

/// Returns the number of a core register of 128 bits by its index in `struct kvm_regs`.
pub const fn core_register_128(index: u64) -> u64 {
    ARM64 | 4 << SIZE_SHIFT | CORE << KIND_SHIFT | index
}

/// Returns the size of a register in bytes, which its number contains.
pub fn size(register: u64) -> usize {
    1 << (register >> SIZE_SHIFT & 0xf)
}

/// Returns true if a vCPU state contains `register`. The counters are part of the clock, because KVM has one offset for all vCPUs. The
/// vector lengths are part of the settings, because KVM sets them only at the initialisation.
pub fn is_vcpu_state(register: u64) -> bool {
    ![VIRTUAL_COUNTER, PHYSICAL_COUNTER, VECTOR_LENGTHS].contains(&register)
}

/// Identification registers with op0 = 3 and CRn = 0: op1, CRm, first op2, and the names from there on.
const IDENTIFICATION: [(u64, u64, u64, &[&str]); 17] = [
    (0, 0, 0, &["MIDR_EL1"]),
    (0, 0, 5, &["MPIDR_EL1", "REVIDR_EL1"]),
    (
        0,
        1,
        0,
        &["ID_PFR0_EL1", "ID_PFR1_EL1", "ID_DFR0_EL1", "ID_AFR0_EL1"],
    ),
    (
        0,
        1,
        4,
        &["ID_MMFR0_EL1", "ID_MMFR1_EL1", "ID_MMFR2_EL1", "ID_MMFR3_EL1"],
    ),
    (
        0,
        2,
        0,
        &["ID_ISAR0_EL1", "ID_ISAR1_EL1", "ID_ISAR2_EL1", "ID_ISAR3_EL1"],
    ),
    (
        0,
        2,
        4,
        &["ID_ISAR4_EL1", "ID_ISAR5_EL1", "ID_MMFR4_EL1", "ID_ISAR6_EL1"],
    ),
    (0, 3, 0, &["MVFR0_EL1", "MVFR1_EL1", "MVFR2_EL1"]),
    (0, 3, 4, &["ID_PFR2_EL1", "ID_DFR1_EL1", "ID_MMFR5_EL1"]),
    (
        0,
        4,
        0,
        &["ID_AA64PFR0_EL1", "ID_AA64PFR1_EL1", "ID_AA64PFR2_EL1"],
    ),
    (0, 4, 4, &["ID_AA64ZFR0_EL1", "ID_AA64SMFR0_EL1"]),
    (0, 4, 7, &["ID_AA64FPFR0_EL1"]),
    (
        0,
        5,
        0,
        &["ID_AA64DFR0_EL1", "ID_AA64DFR1_EL1", "ID_AA64DFR2_EL1"],
    ),
    (0, 5, 4, &["ID_AA64AFR0_EL1", "ID_AA64AFR1_EL1"]),
    (
        0,
        6,
        0,
        &[
            "ID_AA64ISAR0_EL1",
            "ID_AA64ISAR1_EL1",
            "ID_AA64ISAR2_EL1",
            "ID_AA64ISAR3_EL1",
        ],
    ),
    (
        0,
        7,
        0,
        &[
            "ID_AA64MMFR0_EL1",
            "ID_AA64MMFR1_EL1",
            "ID_AA64MMFR2_EL1",
            "ID_AA64MMFR3_EL1",
            "ID_AA64MMFR4_EL1",
        ],
    ),
    (1, 0, 0, &["CCSIDR_EL1", "CLIDR_EL1", "CCSIDR2_EL1"]),
    (3, 0, 1, &["CTR_EL0"]),
];
/// The same for single registers.
const OTHERS: [(u64, u64, u64, &str); 5] = [
    (1, 0, 4, "GMID_EL1"),
    (1, 0, 6, "SMIDR_EL1"),
    (1, 0, 7, "AIDR_EL1"),
    (2, 0, 0, "CSSELR_EL1"),
    (3, 0, 7, "DCZID_EL0"),
];

/// Returns the architectural name of an identification register.
fn identification(op1: u64, crm: u64, op2: u64) -> Option<&'static str> {
    let listed = IDENTIFICATION
        .iter()
        .find_map(|&(own_op1, own_crm, first, names)| {
            let index = usize::try_from(op2.checked_sub(first)?).ok()?;
            ((own_op1, own_crm) == (op1, crm)).then(|| names.get(index).copied())?
        });
    let is_same = |other: &&(u64, u64, u64, _)| (other.0, other.1, other.2) == (op1, crm, op2);
    listed.or_else(|| OTHERS.iter().find(is_same).map(|other| other.3))
}

/// Keys of pointer authentication by CRm, from 1 on, and op2.
const KEYS: [[&str; 4]; 3] = [
    ["APIAKeyLo_EL1", "APIAKeyHi_EL1", "APIBKeyLo_EL1", "APIBKeyHi_EL1"],
    ["APDAKeyLo_EL1", "APDAKeyHi_EL1", "APDBKeyLo_EL1", "APDBKeyHi_EL1"],
    ["APGAKeyLo_EL1", "APGAKeyHi_EL1", "", ""],
];

/// Returns the architectural name of a key of pointer authentication.
fn key(crm: u64, op2: u64) -> Option<&'static str> {
    let row = KEYS.get(usize::try_from(crm.checked_sub(1)?).ok()?)?;
    let name = row.get(usize::try_from(op2).ok()?).copied();
    name.filter(|name| !name.is_empty())
}

/// Returns the name of a register. That of most system registers consists of op0, op1, CRn, CRm and op2.
pub fn name(register: u64) -> String {
    let number = register & 0xffff;
    let field = |shift: u32, bits: u32| register >> shift & ((1 << bits) - 1);
    match register >> KIND_SHIFT & 0xfff {
        CORE => core_name(number),
        CACHE => format!("CCSIDR_EL1 of cache {}", number & 0xff),
        SYSTEM => {
            let (op0, op1, crn, crm, op2) =
                (field(14, 2), field(11, 3), field(7, 4), field(3, 4), field(0, 3));
            let named = match (op0, op1, crn) {
                (3, _, 0) => identification(op1, crm, op2),
                (3, 0, 2) => key(crm, op2),
                _ => None,
            };
            let encoded = || format!("system register S{op0}_{op1}_C{crn}_C{crm}_{op2}");
            named.map_or_else(encoded, str::to_owned)
        }
        FIRMWARE => format!("firmware register {number}"),
        FIRMWARE_FEATURES => format!("firmware feature register {number}"),
        SVE => sve_name(number),
        _ => format!("register {register:#x}"),
    }
}

/// Names of the core registers behind X30, two words each.
const CORE_NAMES: [&str; 11] = [
    "SP", "PC", "PSTATE", "SP_EL1", "ELR_EL1", "SPSR_EL1", "SPSR_abt", "SPSR_und", "SPSR_irq", "SPSR_fiq", "",
];
/// Index of V0, whose registers have four words each, and of the two words behind V31.
const V0_INDEX: u64 = 84;
const FPSR_INDEX: u64 = 212;

fn core_name(index: u64) -> String {
    match index {
        0..62 => format!("X{}", index / 2),
        62..V0_INDEX => CORE_NAMES[usize::try_from((index - 62) / 2).unwrap_or(0)].to_owned(),
        V0_INDEX..FPSR_INDEX => format!("V{}", (index - V0_INDEX) / 4),
        FPSR_INDEX => "FPSR".to_owned(),
        _ => "FPCR".to_owned(),
    }
}

fn sve_name(number: u64) -> String {
    match number {
        0..SVE_PREDICATES => format!("Z{} of SVE", number >> 5),
        SVE_PREDICATES..SVE_FIRST_FAULT => format!("P{} of SVE", (number - SVE_PREDICATES) >> 5),
        SVE_FIRST_FAULT => "FFR of SVE".to_owned(),
        _ => "the vector lengths of SVE".to_owned(),
    }
}

/// Access to the registers of a vCPU.
pub trait RegisterFile {
    /// Returns the numbers of the registers that a vCPU state contains.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    fn list(&self) -> Result<Vec<u64>, Error>;

    /// Reads a register, whose size is that of `value`.
    ///
    /// # Errors
    /// That of the kernel.
    fn get(&self, register: u64, value: &mut [u8]) -> io::Result<()>;

    /// Writes a register.
    ///
    /// # Errors
    /// That of the kernel.
    fn set(&self, register: u64, value: &[u8]) -> io::Result<()>;
}

/// Writes `registers` with their `values`, one after the other. With [`CpuCheck::Mask`], registers that this host lacks are left out.
///
/// # Errors
/// [`Error::Unsupported`] with a register that this host lacks, [`Error::Invalid`] with one whose value differs on this host, and those
/// of [`RegisterFile::list`].
pub fn restore(
    file: &impl RegisterFile,
    registers: &[u64],
    values: &[u8],
    check: CpuCheck,
) -> Result<(), Error> {
    let length: usize = registers.iter().copied().map(size).sum();
    if length != values.len() {
        return Err(invalid(format!(
            "its registers have {length} bytes, and its values {}",
            values.len()
        )));
    }
    let own = file.list()?;
    let mut rest = values;
    for register in registers {
        let (value, next) = rest.split_at(size(*register));
        rest = next;
        if own.contains(register) {
            write(file, *register, value)?;
        } else if check != CpuCheck::Mask {
            return Err(Error::Unsupported {
                component: COMPONENT,
                reason: format!("this host lacks {}", name(*register)),
            });
        }
    }
    Ok(())
}

/// Writes `register`, unless it has the value already: KVM rejects writes of some registers.
fn write(file: &impl RegisterFile, register: u64, value: &[u8]) -> Result<(), Error> {
    let Err(error) = file.set(register, value) else {
        return Ok(());
    };
    let mut own = vec![0; value.len()];
    if file.get(register, &mut own).is_ok() && own == value {
        return Ok(());
    }
    Err(invalid(format!(
        "{} is {} in the snapshot and {} on this host, which KVM does not change: {error}",
        name(register),
        hexadecimal(value),
        hexadecimal(&own),
    )))
}

fn invalid(reason: String) -> Error {
    Error::Invalid {
        component: COMPONENT,
        reason,
    }
}

/// Returns a little-endian value as a number.
fn hexadecimal(value: &[u8]) -> String {
    let digits: String = value.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

#[cfg(test)]
mod tests;
