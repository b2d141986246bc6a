//! Registers in the order of gdb's target description.
//!
//! The first ones have the layout of `X86_64CoreRegs`. The upper halves of the vector registers and the system registers follow.

use std::ops::Range;

use gdb::{Layout as _, X86_64CoreRegs, X86SegmentRegs, X87FpuInternalRegs};
use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::arch::debug::{RegisterFeature, RegisterReader, RegisterRow};
use crate::kvm::{self, failed};

/// Flags by name, as gdb's own description has them.
const FLAGS: &str = r#"<flags id="f" size="4"><field name="CF" start="0" end="0"/><field name="" start="1" end="1"/><field name="PF" start="2" end="2"/><field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/><field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/><field name="OF" start="11" end="11"/><field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/><field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/><field name="VIF" start="19" end="19"/><field name="VIP" start="20" end="20"/><field name="ID" start="21" end="21"/></flags>"#;

/// A vector register by its elements, as gdb's own description has them.
const VECTOR: &str = r#"<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/><vector id="v16i8" type="int8" count="16"/><vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/><union id="v"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/><field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>"#;

/// Registers of the target description.
pub const FEATURES: &[RegisterFeature] = &[
    RegisterFeature {
        name: "org.gnu.gdb.i386.core",
        types: FLAGS,
        registers: &[
            RegisterRow::one("rax", 8, "int64"),
            RegisterRow::one("rbx", 8, "int64"),
            RegisterRow::one("rcx", 8, "int64"),
            RegisterRow::one("rdx", 8, "int64"),
            RegisterRow::one("rsi", 8, "int64"),
            RegisterRow::one("rdi", 8, "int64"),
            RegisterRow::one("rbp", 8, "data_ptr"),
            RegisterRow::one("rsp", 8, "data_ptr"),
            RegisterRow::many("r", 8..16, 8, "int64"),
            RegisterRow::one("rip", 8, "code_ptr"),
            RegisterRow::one("eflags", 4, "f"),
            RegisterRow::one("cs", 4, "int32"),
            RegisterRow::one("ss", 4, "int32"),
            RegisterRow::one("ds", 4, "int32"),
            RegisterRow::one("es", 4, "int32"),
            RegisterRow::one("fs", 4, "int32"),
            RegisterRow::one("gs", 4, "int32"),
            RegisterRow::many("st", 0..8, 10, "i387_ext"),
            RegisterRow::one("fctrl", 4, "int"),
            RegisterRow::one("fstat", 4, "int"),
            RegisterRow::one("ftag", 4, "int"),
            RegisterRow::one("fiseg", 4, "int"),
            RegisterRow::one("fioff", 4, "int"),
            RegisterRow::one("foseg", 4, "int"),
            RegisterRow::one("fooff", 4, "int"),
            RegisterRow::one("fop", 4, "int"),
        ],
    },
    RegisterFeature {
        name: "org.gnu.gdb.i386.sse",
        types: VECTOR,
        registers: &[
            RegisterRow::many("xmm", 0..16, 16, "v"),
            RegisterRow::one("mxcsr", 4, "int"),
        ],
    },
    RegisterFeature {
        name: "org.gnu.gdb.i386.avx",
        types: "",
        registers: &[RegisterRow {
            name: "ymm",
            numbers: Some(0..16),
            suffix: "h",
            length: 16,
            kind: "uint128",
        }],
    },
    RegisterFeature {
        name: "org.gnu.gdb.i386.segments",
        types: "",
        registers: &[
            RegisterRow::one("fs_base", 8, "int"),
            RegisterRow::one("gs_base", 8, "int"),
        ],
    },
    RegisterFeature {
        name: "org.mayfly.i386.system",
        types: "",
        registers: &[
            RegisterRow::one("k_gs_base", 8, "int"),
            RegisterRow::one("cr0", 8, "int"),
            RegisterRow::one("cr2", 8, "int"),
            RegisterRow::one("cr3", 8, "int"),
            RegisterRow::one("cr4", 8, "int"),
            RegisterRow::one("cr8", 8, "int"),
            RegisterRow::one("efer", 8, "int"),
        ],
    },
];

/// Bytes of `X86_64CoreRegs`.
const CORE_LENGTH: usize = 0x218;
/// Position of the instruction pointer.
const IP: usize = 16 * 8;
/// Number of vector registers, whose upper halves follow the core registers.
const VECTORS: usize = 16;

const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

// Layout of the XSAVE area: Intel SDM volume 1, sections 13.4.2 and 13.4.3.
/// Bytes of MXCSR and of the upper halves of the vector registers.
const UNSETTABLE: Range<usize> = CORE_LENGTH - 4..CORE_LENGTH + VECTORS * 16;
/// Word of MXCSR.
const MXCSR_WORD: usize = 24 / 4;
/// Word of XSTATE_BV.
const XSTATE_WORD: usize = 512 / 4;
/// Bit of XSTATE_BV: the upper halves of the vector registers.
const XSTATE_AVX: u32 = 1 << 2;
/// First word of the upper halves.
const AVX_WORD: usize = 576 / 4;

/// Returns the instruction pointer among `registers`.
pub fn instruction_pointer(registers: &[u8]) -> u64 {
    RegisterReader(registers.get(IP..).unwrap_or_default()).take_u64()
}

/// Registers of a vCPU in the structures of KVM.
#[derive(Clone, Copy, PartialEq)]
struct VcpuRegisters {
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    kernel_gs_base: u64,
}

impl VcpuRegisters {
    fn get(vcpu: &VcpuFd) -> Result<Self, kvm::Error> {
        Ok(Self {
            regs: vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
            fpu: vcpu.get_fpu().map_err(failed("KVM_GET_FPU"))?,
            kernel_gs_base: kernel_gs_base(vcpu)?,
        })
    }

    fn core(&self) -> X86_64CoreRegs {
        let (regs, sregs, fpu) = (&self.regs, &self.sregs, &self.fpu);
        let selector = |segment: kvm_bindings::kvm_segment| u32::from(segment.selector);
        let mut st = [[0; 10]; 8];
        for (place, register) in st.iter_mut().zip(&fpu.fpr) {
            place.copy_from_slice(&register[..10]);
        }
        X86_64CoreRegs {
            regs: [
                regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8,
                regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
            ],
            eflags: low(regs.rflags),
            rip: regs.rip,
            segments: X86SegmentRegs {
                cs: selector(sregs.cs),
                ss: selector(sregs.ss),
                ds: selector(sregs.ds),
                es: selector(sregs.es),
                fs: selector(sregs.fs),
                gs: selector(sregs.gs),
            },
            st,
            fpu: X87FpuInternalRegs {
                fctrl: fpu.fcw.into(),
                fstat: fpu.fsw.into(),
                ftag: full_tags(fpu.ftwx),
                fioff: low(fpu.last_ip),
                fiseg: low(fpu.last_ip >> 32),
                fooff: low(fpu.last_dp),
                foseg: low(fpu.last_dp >> 32),
                fop: fpu.last_opcode.into(),
            },
            xmm: fpu.xmm.map(u128::from_le_bytes),
            mxcsr: fpu.mxcsr,
        }
    }

    fn set_core(&mut self, core: &X86_64CoreRegs) {
        let regs = &mut self.regs;
        [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ] = core.regs;
        (regs.rip, regs.rflags) = (core.rip, core.eflags.into());
        let sregs = &mut self.sregs;
        for (segment, selector) in [
            (&mut sregs.cs, core.segments.cs),
            (&mut sregs.ss, core.segments.ss),
            (&mut sregs.ds, core.segments.ds),
            (&mut sregs.es, core.segments.es),
            (&mut sregs.fs, core.segments.fs),
            (&mut sregs.gs, core.segments.gs),
        ] {
            segment.selector = word(selector);
        }
        let fpu = &mut self.fpu;
        for (place, register) in fpu.fpr.iter_mut().zip(&core.st) {
            place[..10].copy_from_slice(register);
        }
        (fpu.fcw, fpu.fsw) = (word(core.fpu.fctrl), word(core.fpu.fstat));
        fpu.ftwx = short_tags(core.fpu.ftag);
        fpu.last_ip = u64::from(core.fpu.fiseg) << 32 | u64::from(core.fpu.fioff);
        fpu.last_dp = u64::from(core.fpu.foseg) << 32 | u64::from(core.fpu.fooff);
        fpu.last_opcode = word(core.fpu.fop);
        fpu.xmm = core.xmm.map(u128::to_le_bytes);
        fpu.mxcsr = core.mxcsr;
    }

    fn system(&mut self) -> [&mut u64; 9] {
        let sregs = &mut self.sregs;
        [
            &mut sregs.fs.base,
            &mut sregs.gs.base,
            &mut self.kernel_gs_base,
            &mut sregs.cr0,
            &mut sregs.cr2,
            &mut sregs.cr3,
            &mut sregs.cr4,
            &mut sregs.cr8,
            &mut sregs.efer,
        ]
    }
}

/// Reads all registers.
pub fn read(vcpu: &VcpuFd) -> Result<Vec<u8>, kvm::Error> {
    let mut registers = VcpuRegisters::get(vcpu)?;
    let xsave = vcpu.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
    // KVM_GET_FPU leaves it out.
    registers.fpu.mxcsr = xsave.region[MXCSR_WORD];
    let mut bytes = Vec::with_capacity(CORE_LENGTH + VECTORS * 16 + 9 * 8);
    registers.core().write(&mut bytes);
    // The processor leaves out the halves that are zero.
    let is_present = xsave.region[XSTATE_WORD] & XSTATE_AVX != 0;
    for word in &xsave.region[AVX_WORD..AVX_WORD + VECTORS * 4] {
        let word = if is_present { *word } else { 0 };
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for register in registers.system() {
        bytes.extend_from_slice(&register.to_le_bytes());
    }
    Ok(bytes)
}

/// Sets the registers that differ.
///
/// # Errors
/// Fails without effect if MXCSR or the upper halves of the vector registers differ, which KVM_SET_FPU lacks.
pub fn write(vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), kvm::Error> {
    if read(vcpu)?.get(UNSETTABLE) != bytes.get(UNSETTABLE) {
        return Err(failed("KVM_SET_FPU")(kvm_ioctls::Error::new(libc::EOPNOTSUPP)));
    }
    let before = VcpuRegisters::get(vcpu)?;
    let mut after = before;
    if let Some(core) = X86_64CoreRegs::read(bytes) {
        after.set_core(&core);
    }
    let mut rest = RegisterReader(bytes.get(CORE_LENGTH + VECTORS * 16..).unwrap_or_default());
    for register in after.system() {
        *register = rest.take_u64();
    }
    if after.sregs != before.sregs {
        vcpu.set_sregs(&after.sregs).map_err(failed("KVM_SET_SREGS"))?;
    }
    if after.regs != before.regs {
        vcpu.set_regs(&after.regs).map_err(failed("KVM_SET_REGS"))?;
    }
    if after.fpu != before.fpu {
        vcpu.set_fpu(&after.fpu).map_err(failed("KVM_SET_FPU"))?;
    }
    if after.kernel_gs_base != before.kernel_gs_base {
        set_kernel_gs_base(vcpu, after.kernel_gs_base)?;
    }
    Ok(())
}

/// Returns the MSR of the base that SWAPGS exchanges.
fn kernel_gs_base(vcpu: &VcpuFd) -> Result<u64, kvm::Error> {
    let mut msrs = kernel_gs_base_entry(0)?;
    vcpu.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
    Ok(msrs.as_slice().first().map_or(0, |entry| entry.data))
}

fn set_kernel_gs_base(vcpu: &VcpuFd, value: u64) -> Result<(), kvm::Error> {
    let msrs = kernel_gs_base_entry(value)?;
    vcpu.set_msrs(&msrs).map(drop).map_err(failed("KVM_SET_MSRS"))
}

fn kernel_gs_base_entry(data: u64) -> Result<Msrs, kvm::Error> {
    let entry = kvm_msr_entry {
        index: MSR_KERNEL_GS_BASE,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).map_err(|_| kvm::Error::Call {
        call: "KVM_GET_MSRS".into(),
        hint: "",
        source: std::io::ErrorKind::OutOfMemory.into(),
    })
}

/// Returns the lower half of a register.
fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

/// Returns the lower half of a register.
fn word(value: u32) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(0)
}

/// Returns the tag word with two bits for each register, from a bit for each register that is not empty.
fn full_tags(short: u8) -> u32 {
    (0..8)
        .filter(|bit| short & 1 << bit == 0)
        .fold(0, |tags, bit| tags | 3 << (2 * bit))
}

fn short_tags(full: u32) -> u8 {
    (0..8)
        .filter(|bit| full >> (2 * bit) & 3 != 3)
        .fold(0, |tags, bit| tags | 1 << bit)
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{kvm_fpu, kvm_regs, kvm_sregs};

    use super::{CORE_LENGTH, IP, VECTORS, VcpuRegisters, full_tags, instruction_pointer, short_tags};
    use crate::arch::debug::{register_range, registers_length, target_description};
    use crate::arch::x86_64::X86_64;

    #[test]
    fn description_has_all_registers_in_order() {
        assert_eq!(registers_length::<X86_64>(), CORE_LENGTH + VECTORS * 16 + 9 * 8);
        let text = target_description::<X86_64>();
        let names: Vec<_> = text
            .split("<reg name=\"")
            .skip(1)
            .map(|text| text.split('"').next().unwrap())
            .collect();
        let position = |name| names.iter().position(|known| *known == name).unwrap();
        let range = |name| register_range::<X86_64>(position(name)).unwrap();
        assert_eq!(range("rip"), IP..IP + 8);
        assert_eq!(range("r15"), 15 * 8..16 * 8);
        assert_eq!(range("st7"), 0xa4 + 70..0xa4 + 80);
        assert_eq!(range("mxcsr").end, CORE_LENGTH);
        assert_eq!(range("ymm15h").end, CORE_LENGTH + VECTORS * 16);
        assert_eq!(range("efer").end, registers_length::<X86_64>());
        assert_eq!(register_range::<X86_64>(names.len()), None);
    }

    #[test]
    fn core_registers_round_trip() {
        let mut before = VcpuRegisters {
            regs: kvm_regs {
                rax: 1,
                rsp: 7,
                rbp: 8,
                r15: 16,
                rip: 0x1234,
                rflags: 0x246,
                ..Default::default()
            },
            sregs: kvm_sregs::default(),
            fpu: kvm_fpu {
                ftwx: 0x81,
                last_ip: 0x5_0000_0006,
                mxcsr: 0x1f80,
                ..Default::default()
            },
            kernel_gs_base: 3,
        };
        before.sregs.cs.selector = 0x10;
        before.fpu.fpr[7][9] = 9;
        before.fpu.xmm[15][15] = 15;
        let mut after = VcpuRegisters {
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            fpu: kvm_fpu::default(),
            kernel_gs_base: 3,
        };
        after.set_core(&before.core());
        assert!(after == before);
        assert_eq!(before.core().regs[6..8], [8, 7], "rbp precedes rsp");
    }

    #[test]
    fn instruction_pointer_is_found() {
        let mut bytes = vec![0; CORE_LENGTH];
        bytes[IP] = 5;
        assert_eq!(instruction_pointer(&bytes), 5);
        assert_eq!(instruction_pointer(&[]), 0);
    }

    #[test]
    fn empty_registers_have_tag_3() {
        assert_eq!(full_tags(0), 0xffff);
        assert_eq!(full_tags(0x81), 0x3ffc);
        assert_eq!(short_tags(full_tags(0x5a)), 0x5a);
    }
}
