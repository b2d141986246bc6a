//! Debugging of vCPUs: registers in gdb's order, breakpoints, watchpoints, single step, and the probe.

use gdb::{AArch64CoreRegs, Layout as _, PointKind};
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW, KVM_GUESTDBG_USE_SW_BP,
    kvm_debug_exit_arch, kvm_guest_debug,
};
use kvm_ioctls::{Kvm, VcpuFd};
use snapshot::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::cache;
use super::exception;
use super::paging::Paging;
use super::platform::Aarch64;
use super::registers::{
    FPCR, FPSR, PC, PSTATE, SCTLR_EL1, SP_EL0, SP_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1, V0, X0, core_register,
    system_register,
};
use super::vcpu::{self, EntryState};
use crate::arch::debug::{RegisterFeature, RegisterReader, RegisterRow, probe_exit, probe_memory};
use crate::arch::{
    self, DebugAbilities, DebugControl, DebugCpu, DebugExit, HardwarePoint, PointLimits, StepMode,
};
use crate::config::CpuFeatures;
use crate::kvm::{self, failed};

const ELR_EL1: u64 = core_register(70);
const SPSR_EL1: u64 = core_register(72);
const ESR_EL1: u64 = system_register(3, 0, 5, 2, 0);
const VBAR_EL1: u64 = system_register(3, 0, 12, 0, 0);
const ID_AA64DFR0_EL1: u64 = system_register(3, 0, 0, 5, 0);

/// System registers of the target description, in its order.
const SYSTEM: [u64; 16] = [
    SP_EL0,
    SP_EL1,
    ELR_EL1,
    SPSR_EL1,
    SCTLR_EL1,
    TTBR0_EL1,
    TTBR1_EL1,
    TCR_EL1,
    ESR_EL1,
    system_register(3, 0, 6, 0, 0),
    system_register(3, 0, 10, 2, 0),
    VBAR_EL1,
    system_register(3, 0, 1, 0, 2),
    system_register(3, 0, 13, 0, 4),
    system_register(3, 3, 13, 0, 2),
    system_register(3, 3, 13, 0, 3),
];

/// PSTATE: the stack pointer is that of the exception level.
const PSTATE_SP: u64 = 1;

/// A vector register by its elements.
const VECTOR: &str = r#"<vector id="v2d" type="ieee_double" count="2"/><vector id="v4f" type="ieee_single" count="4"/><vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/><vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/><union id="v"><field name="d" type="v2d"/><field name="s" type="v4f"/><field name="b" type="v16i8"/><field name="h" type="v8i16"/><field name="w" type="v4i32"/><field name="l" type="v2i64"/><field name="q" type="uint128"/></union>"#;

/// Bytes of [`AArch64CoreRegs`].
const CORE_LENGTH: usize = 33 * 8 + 4 + 32 * 16 + 8;

/// Exception classes of debug exits: Arm Architecture Reference Manual, ESR_ELx.
const BREAKPOINT: u32 = 0x30;
const STEP: u32 = 0x32;
const WATCHPOINT: u32 = 0x34;
const INSTRUCTION: u32 = 0x3c;
/// ESR_ELx: the instruction has 32 bits.
const SYNDROME_IL: u64 = 1 << 25;

/// Control register of a breakpoint or watchpoint: enabled, at EL0 and EL1.
const ENABLED: u64 = 1 | 3 << 1;

impl DebugCpu for Aarch64 {
    type Paging = Paging;

    /// BRK #0.
    const BREAKPOINT: &'static [u8] = &[0, 0, 0x20, 0xd4];
    const REGISTERS: &'static [RegisterFeature] = &[
        RegisterFeature {
            name: "org.gnu.gdb.aarch64.core",
            types: "",
            registers: &[
                RegisterRow::many("x", 0..31, 8, "int"),
                RegisterRow::one("sp", 8, "data_ptr"),
                RegisterRow::one("pc", 8, "code_ptr"),
                RegisterRow::one("cpsr", 4, "int"),
            ],
        },
        RegisterFeature {
            name: "org.gnu.gdb.aarch64.fpu",
            types: VECTOR,
            registers: &[
                RegisterRow::many("v", 0..32, 16, "v"),
                RegisterRow::one("fpcr", 4, "int"),
                RegisterRow::one("fpsr", 4, "int"),
            ],
        },
        RegisterFeature {
            name: "org.mayfly.aarch64.system",
            types: "",
            registers: &[
                RegisterRow::one("SP_EL0", 8, "int"),
                RegisterRow::one("SP_EL1", 8, "int"),
                RegisterRow::one("ELR_EL1", 8, "int"),
                RegisterRow::one("SPSR_EL1", 8, "int"),
                RegisterRow::one("SCTLR_EL1", 8, "int"),
                RegisterRow::one("TTBR0_EL1", 8, "int"),
                RegisterRow::one("TTBR1_EL1", 8, "int"),
                RegisterRow::one("TCR_EL1", 8, "int"),
                RegisterRow::one("ESR_EL1", 8, "int"),
                RegisterRow::one("FAR_EL1", 8, "int"),
                RegisterRow::one("MAIR_EL1", 8, "int"),
                RegisterRow::one("VBAR_EL1", 8, "int"),
                RegisterRow::one("CPACR_EL1", 8, "int"),
                RegisterRow::one("TPIDR_EL1", 8, "int"),
                RegisterRow::one("TPIDR_EL0", 8, "int"),
                RegisterRow::one("TPIDRRO_EL0", 8, "int"),
            ],
        },
    ];
    const GDB_NAME: &'static str = "aarch64";

    fn registers(vcpu: &VcpuFd) -> Result<Vec<u8>, kvm::Error> {
        let mut bytes = Vec::with_capacity(CORE_LENGTH + SYSTEM.len() * 8);
        core(vcpu)?.write(&mut bytes);
        for register in SYSTEM {
            bytes.extend_from_slice(&vcpu::get(vcpu, register)?.to_le_bytes());
        }
        Ok(bytes)
    }

    fn set_registers(vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), kvm::Error> {
        // Before `sp` is set, which is the stack pointer in use under another name: a difference is a change of its own then.
        let old = Self::registers(vcpu)?;
        if let Some(new) = AArch64CoreRegs::read(bytes) {
            set_core(vcpu, &core(vcpu)?, &new)?;
        }
        let mut old = RegisterReader(old.get(CORE_LENGTH..).unwrap_or_default());
        let mut new = RegisterReader(bytes.get(CORE_LENGTH..).unwrap_or_default());
        for register in SYSTEM {
            let (old, new) = (old.take_u64(), new.take_u64());
            if old != new {
                vcpu::set(vcpu, register, new)?;
            }
        }
        Ok(())
    }

    fn instruction_pointer(registers: &[u8]) -> u64 {
        RegisterReader(registers.get(32 * 8..).unwrap_or_default()).take_u64()
    }

    fn paging(vcpu: &VcpuFd) -> Result<Paging, kvm::Error> {
        vcpu::paging(vcpu)
    }

    fn translate(paging: &Paging, memory: &GuestMemory, address: u64) -> Option<u64> {
        paging.translate(memory, address)
    }

    fn debug_exit(exit: &kvm_debug_exit_arch) -> DebugExit {
        match exit.hsr >> 26 {
            BREAKPOINT => DebugExit::Hardware,
            WATCHPOINT => DebugExit::WatchAddress(exit.far),
            INSTRUCTION => DebugExit::Software(operand(exit.hsr)),
            STEP => DebugExit::Step,
            _ => DebugExit::Step,
        }
    }

    fn point_limits(vcpu: &VcpuFd) -> PointLimits {
        // The architecture guarantees two of each.
        let features = vcpu::get(vcpu, ID_AA64DFR0_EL1).unwrap_or(1 << 12 | 1 << 20);
        let count = |shift: u32| usize::from((features >> shift & 0xf).to_le_bytes()[0]) + 1;
        PointLimits {
            breakpoints: count(12),
            watchpoints: count(20),
        }
    }

    fn fit(points: &[HardwarePoint], limits: PointLimits) -> bool {
        let breakpoints = points.iter().filter(|point| is_breakpoint(point)).count();
        let is_valid = |point: &HardwarePoint| match is_breakpoint(point) {
            true => point.address.is_multiple_of(4),
            // Bytes of one word of 8 bytes.
            false => point.length > 0 && point.address % 8 + point.length <= 8,
        };
        breakpoints <= limits.breakpoints
            && points.len() - breakpoints <= limits.watchpoints
            && points.iter().all(is_valid)
    }

    fn set_debug(vcpu: &VcpuFd, control: &DebugControl) -> Result<(), kvm::Error> {
        let set = vcpu.set_guest_debug(&guest_debug(control));
        set.map_err(failed("KVM_SET_GUEST_DEBUG"))
    }

    fn pass_breakpoint(vcpu: &VcpuFd, control: &DebugControl, operand: u16) -> Result<(), kvm::Error> {
        Self::set_debug(vcpu, control)?;
        // KVM injects no exception of BRK.
        let (pc, pstate) = (vcpu::get(vcpu, PC)?, vcpu::get(vcpu, PSTATE)?);
        let (offset, entered) = exception::enter(pstate, vcpu::get(vcpu, SCTLR_EL1)?);
        let vector = vcpu::get(vcpu, VBAR_EL1)?.wrapping_add(offset);
        let syndrome = u64::from(INSTRUCTION) << 26 | SYNDROME_IL | u64::from(operand);
        for (register, value) in [
            (ESR_EL1, syndrome),
            (ELR_EL1, pc),
            (SPSR_EL1, pstate),
            (PC, vector),
            (PSTATE, entered),
        ] {
            vcpu::set(vcpu, register, value)?;
        }
        Ok(())
    }

    fn sync_instructions(memory: &GuestMemory, address: GuestAddress, length: usize) {
        cache::sync_instructions(memory, address, length);
    }

    fn probe(kvm: &Kvm) -> Result<DebugAbilities, kvm::Error> {
        probe(kvm)
    }
}

/// Returns the operand of BRK in its syndrome.
fn operand(syndrome: u32) -> u16 {
    u16::try_from(syndrome & 0xffff).unwrap_or(0)
}

fn is_breakpoint(point: &HardwarePoint) -> bool {
    matches!(point.kind, PointKind::Software | PointKind::Hardware)
}

/// Returns the debug registers for `control`.
fn guest_debug(control: &DebugControl) -> kvm_guest_debug {
    let mut debug = kvm_guest_debug::default();
    if !control.is_enabled {
        return debug;
    }
    debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW;
    if control.has_software {
        debug.control |= KVM_GUESTDBG_USE_SW_BP;
    }
    if control.step != StepMode::Off {
        debug.control |= KVM_GUESTDBG_SINGLESTEP;
    }
    let registers = &mut debug.arch;
    let breakpoints = control.points.iter().filter(|point| is_breakpoint(point));
    for (index, point) in breakpoints.enumerate().take(registers.dbg_bcr.len()) {
        // All four bytes of an instruction.
        registers.dbg_bcr[index] = ENABLED | 0xf << 5;
        registers.dbg_bvr[index] = point.address;
    }
    let watchpoints = control.points.iter().filter(|point| !is_breakpoint(point));
    for (index, point) in watchpoints.enumerate().take(registers.dbg_wcr.len()) {
        let access = match point.kind {
            PointKind::Read => 1,
            PointKind::Write => 2,
            _ => 3,
        };
        let bytes = ((1_u64 << point.length.min(8)) - 1) << (point.address % 8);
        registers.dbg_wcr[index] = ENABLED | access << 3 | (bytes & 0xff) << 5;
        registers.dbg_wvr[index] = point.address & !7;
    }
    debug
}

fn core(vcpu: &VcpuFd) -> Result<AArch64CoreRegs, kvm::Error> {
    let mut core = AArch64CoreRegs::default();
    for (register, place) in (X0..).step_by(2).zip(&mut core.x) {
        *place = vcpu::get(vcpu, register)?;
    }
    let pstate = vcpu::get(vcpu, PSTATE)?;
    core.sp = vcpu::get(vcpu, stack_pointer(pstate))?;
    core.pc = vcpu::get(vcpu, PC)?;
    core.cpsr = low(pstate);
    for (register, place) in (V0..).step_by(4).zip(&mut core.v) {
        *place = u128::from_le_bytes(get_bytes(vcpu, register)?);
    }
    core.fpsr = u32::from_le_bytes(get_bytes(vcpu, FPSR)?);
    core.fpcr = u32::from_le_bytes(get_bytes(vcpu, FPCR)?);
    Ok(core)
}

/// Sets the registers of `new` that differ from `old`.
fn set_core(vcpu: &VcpuFd, old: &AArch64CoreRegs, new: &AArch64CoreRegs) -> Result<(), kvm::Error> {
    let general = (X0..).step_by(2).zip(old.x.iter().zip(&new.x));
    for (register, (old, new)) in general {
        if old != new {
            vcpu::set(vcpu, register, *new)?;
        }
    }
    for (register, old, new) in [
        (stack_pointer(old.cpsr.into()), old.sp, new.sp),
        (PC, old.pc, new.pc),
        (PSTATE, old.cpsr.into(), new.cpsr.into()),
    ] {
        if old != new {
            vcpu::set(vcpu, register, new)?;
        }
    }
    let vectors = (V0..).step_by(4).zip(old.v.iter().zip(&new.v));
    for (register, (old, new)) in vectors {
        if old != new {
            set_bytes(vcpu, register, &new.to_le_bytes())?;
        }
    }
    for (register, old, new) in [(FPSR, old.fpsr, new.fpsr), (FPCR, old.fpcr, new.fpcr)] {
        if old != new {
            set_bytes(vcpu, register, &new.to_le_bytes())?;
        }
    }
    Ok(())
}

/// Returns the register of the stack pointer in use.
fn stack_pointer(pstate: u64) -> u64 {
    match pstate & PSTATE_SP {
        0 => SP_EL0,
        _ => SP_EL1,
    }
}

/// Returns the lower half of a register.
fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn get_bytes<const N: usize>(vcpu: &VcpuFd, register: u64) -> Result<[u8; N], kvm::Error> {
    let mut bytes = [0; N];
    match vcpu.get_one_reg(register, &mut bytes) {
        Ok(_) => Ok(bytes),
        // A vCPU with SVE has no registers of this kind; the debugger shows zeros.
        Err(error) if matches!(error.errno(), libc::ENOENT | libc::EINVAL) => Ok([0; N]),
        Err(error) => Err(failed(format!("KVM_GET_ONE_REG {register:#x}"))(error)),
    }
}

fn set_bytes(vcpu: &VcpuFd, register: u64, bytes: &[u8]) -> Result<(), kvm::Error> {
    let set = vcpu.set_one_reg(register, bytes).map(drop);
    set.map_err(failed(format!("KVM_SET_ONE_REG {register:#x}")))
}

/// First address of the memory of the probe, its length, and the address of its data.
const PROBE_BASE: u64 = 0x4000_0000;
const PROBE_LENGTH: usize = 0x4000;
const PROBE_DATA: u64 = PROBE_BASE + 0x2000;
/// Exception vectors.
const PROBE_VECTORS: u64 = PROBE_BASE + 0x800;
const PROBE_VECTORS_LENGTH: u64 = 0x800;

/// Probes the means of debugging of this host by a VM of its own.
fn probe(kvm: &Kvm) -> Result<DebugAbilities, kvm::Error> {
    let memory = probe_memory(PROBE_BASE, PROBE_LENGTH)?;
    // str x1, [x0]; brk #0; then at each vector too: str x1, [x2], with x2 = 0, where the VM has no memory.
    let code = [0xf900_0001, 0xd420_0000]
        .into_iter()
        .chain(std::iter::repeat(0xf900_0041_u32));
    let addresses = (PROBE_BASE..PROBE_VECTORS + PROBE_VECTORS_LENGTH).step_by(4);
    for (address, instruction) in addresses.zip(code) {
        // The memory contains all of it.
        let _ = memory.write_obj(instruction, GuestAddress(address));
    }
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    kvm::slots::set(&vm, &memory)?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU 0"))?;
    let target = vcpu::target(&vm, CpuFeatures::default()).map_err(of_platform)?;
    vcpu::initialise(&vcpu, 0, &target, CpuFeatures::default()).map_err(of_platform)?;
    let second = HardwarePoint {
        kind: PointKind::Hardware,
        address: PROBE_BASE + 4,
        length: 4,
    };
    let watchpoint = HardwarePoint {
        kind: PointKind::Write,
        address: PROBE_DATA,
        length: 8,
    };
    Ok(DebugAbilities {
        has_hardware_breakpoints: stops(&mut vcpu, PROBE_BASE, vec![second], DebugExit::Hardware)?,
        has_watchpoints: stops(
            &mut vcpu,
            PROBE_BASE,
            vec![watchpoint],
            DebugExit::WatchAddress(PROBE_DATA),
        )?,
        has_software_breakpoints: stops(&mut vcpu, PROBE_BASE + 4, Vec::new(), DebugExit::Software(0))?,
    })
}

fn of_platform(error: arch::Error) -> kvm::Error {
    match error {
        arch::Error::Kvm(error) => error,
        other => kvm::Error::Call {
            call: "KVM_ARM_VCPU_INIT".into(),
            hint: "",
            source: std::io::Error::other(other),
        },
    }
}

/// Runs from `start`. Returns true if the vCPU stops for the reason `expected`. Otherwise it reaches an access to no device.
fn stops(
    vcpu: &mut VcpuFd,
    start: u64,
    points: Vec<HardwarePoint>,
    expected: DebugExit,
) -> Result<bool, kvm::Error> {
    let entry = EntryState {
        entry: start,
        device_tree: PROBE_DATA,
    };
    vcpu::set_boot_registers(vcpu, &entry)?;
    vcpu::set(vcpu, VBAR_EL1, PROBE_VECTORS)?;
    let control = DebugControl {
        is_enabled: true,
        has_software: true,
        step: StepMode::Off,
        points,
    };
    Aarch64::set_debug(vcpu, &control)?;
    probe_exit(vcpu, Aarch64::debug_exit).map(|exit| exit == Some(expected))
}
