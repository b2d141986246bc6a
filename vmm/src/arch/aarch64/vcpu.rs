//! vCPUs: initialisation, boot registers and status.

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, KVM_CAP_ARM_PTRAUTH_ADDRESS, KVM_CAP_ARM_PTRAUTH_GENERIC,
    KVM_CAP_ARM_SVE, KVM_MP_STATE_STOPPED, kvm_vcpu_init,
};
use kvm_ioctls::{VcpuFd, VmFd};
use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use super::call::ends_with_call;
use super::paging::Paging;
use super::registers::{
    PC, PSTATE, SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1, VECTOR_LENGTHS, X0, core_register, system_register,
};
use crate::arch::frames::{CpuStack, StackReader};
use crate::arch::{self, CpuStatus};
use crate::config::{CpuFeatures, VectorLengths};
use crate::kvm::{Error, failed};
use crate::memory::try_read;

const X29: u64 = core_register(58);
const X30: u64 = core_register(60);

/// System registers by op0, op1, CRn, CRm and op2.
const MPIDR_EL1: u64 = system_register(3, 0, 0, 0, 5);

/// EL1 with its own stack pointer. Debug, SError, IRQ and FIQ are masked: booting.rst.
const PSTATE_BOOT: u64 = 0x3c5;
/// IRQs are masked.
const PSTATE_I: u64 = 1 << 7;
/// Bit of PSTATE: 32-bit state (nRW), whose frames and calls are different.
const PSTATE_32_BIT: u64 = 1 << 4;
/// Bit that all bits above an address repeat.
const UPPER: u64 = 1 << 55;
/// Bits of an address of code, in images without addresses of 52 bits.
const CODE_ADDRESS: u64 = (1 << 48) - 1;

const INSTRUCTION: usize = 4;

/// Registers of the boot vCPU at its first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// Address of the first instruction.
    pub entry: u64,
    /// Address of the device tree.
    pub device_tree: u64,
}

/// Returns the initialisation of the vCPUs of `vm` with `features`.
///
/// # Errors
/// [`arch::Error::CpuFeature`] with a feature that the host lacks, and [`arch::Error::Kvm`].
pub fn target(vm: &VmFd, features: CpuFeatures) -> Result<kvm_vcpu_init, arch::Error> {
    let mut target = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut target)
        .map_err(failed("KVM_ARM_PREFERRED_TARGET"))
        .map_err(arch::Error::Kvm)?;
    target.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    // KVM requires both kinds of pointer authentication or none.
    for (is_requested, feature, capability, bit) in [
        (features.sve, "SVE", KVM_CAP_ARM_SVE, KVM_ARM_VCPU_SVE),
        (
            features.pauth,
            "pointer authentication",
            KVM_CAP_ARM_PTRAUTH_ADDRESS,
            KVM_ARM_VCPU_PTRAUTH_ADDRESS,
        ),
        (
            features.pauth,
            "pointer authentication",
            KVM_CAP_ARM_PTRAUTH_GENERIC,
            KVM_ARM_VCPU_PTRAUTH_GENERIC,
        ),
    ] {
        if !is_requested {
            continue;
        }
        if vm.check_extension_raw(capability.into()) <= 0 {
            return Err(arch::Error::CpuFeature {
                feature,
                missing: "it",
                way_out: "use another host, or a VM without it",
            });
        }
        target.features[0] |= 1 << bit;
    }
    Ok(target)
}

/// Initialises vCPU `id` with the `features` of `target`. All but the first wait until another one starts them.
///
/// # Errors
/// [`arch::Error::CpuFeature`] if the host lacks the vector lengths, and [`arch::Error::Kvm`].
pub fn initialise(
    vcpu: &VcpuFd,
    id: u8,
    target: &kvm_vcpu_init,
    features: CpuFeatures,
) -> Result<(), arch::Error> {
    let mut target = *target;
    if id != 0 {
        target.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    vcpu.vcpu_init(&target)
        .map_err(failed(format!("KVM_ARM_VCPU_INIT of vCPU {id}")))
        .map_err(arch::Error::Kvm)?;
    if !features.sve {
        return Ok(());
    }
    if let Some(lengths) = features.vector_lengths {
        let bytes: Vec<u8> = lengths.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        // KVM rejects a length that the host lacks, and the lack of one that the host requires.
        vcpu.set_one_reg(VECTOR_LENGTHS, &bytes)
            .map_err(|_| arch::Error::CpuFeature {
                feature: "SVE",
                missing: "the vector lengths of the snapshot",
                way_out: "load it on a host with the same ones",
            })?;
    }
    let feature = KVM_ARM_VCPU_SVE.cast_signed();
    vcpu.vcpu_finalize(&feature)
        .map_err(failed(format!("KVM_ARM_VCPU_FINALIZE of vCPU {id}")))
        .map_err(arch::Error::Kvm)
}

/// Returns the vector lengths of a vCPU with SVE.
pub fn vector_lengths(vcpu: &VcpuFd) -> Result<VectorLengths, Error> {
    let mut bytes = [0; 64];
    vcpu.get_one_reg(VECTOR_LENGTHS, &mut bytes)
        .map_err(failed("KVM_GET_ONE_REG of the vector lengths"))?;
    let mut lengths = VectorLengths([0; 8]);
    for (word, bytes) in lengths.0.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(lengths)
}

/// Returns MPIDR_EL1.
pub fn affinity(vcpu: &VcpuFd) -> Result<u64, Error> {
    get(vcpu, MPIDR_EL1)
}

/// Sets the boot registers. The others are zero after the initialisation, as x1 to x3 must be.
pub fn set_boot_registers(vcpu: &VcpuFd, state: &EntryState) -> Result<(), Error> {
    set(vcpu, PSTATE, PSTATE_BOOT)?;
    set(vcpu, PC, state.entry)?;
    set(vcpu, X0, state.device_tree)
}

/// Reads the present execution. KVM does not report a vCPU that waits for an interrupt: it counts as running.
pub fn status(vcpu: &VcpuFd) -> Result<CpuStatus, Error> {
    let state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?.mp_state;
    Ok(CpuStatus {
        is_halted: false,
        is_started: state != KVM_MP_STATE_STOPPED,
        accepts_interrupts: get(vcpu, PSTATE)? & PSTATE_I == 0,
        ip: get(vcpu, PC)?,
    })
}

/// Returns PC and the instruction there.
pub fn instruction(vcpu: &VcpuFd, memory: &GuestMemory) -> (u64, Vec<u8>) {
    let Ok(pc) = get(vcpu, PC) else {
        return (0, Vec::new());
    };
    let mut bytes = vec![0; INSTRUCTION];
    let address = paging(vcpu).ok().and_then(|paging| paging.translate(memory, pc));
    let read = address.map(|address| try_read(memory, GuestAddress(address), &mut bytes));
    bytes.truncate(read.unwrap_or(0));
    (pc, bytes)
}

/// Returns the innermost functions, with at most `limit` return addresses by frame pointers, in X29. A function without a frame has its
/// return address in X30.
pub fn stack(vcpu: &VcpuFd, memory: &GuestMemory, limit: usize) -> Option<CpuStack> {
    let mut stack = CpuStack {
        ip: get(vcpu, PC).ok()?,
        ..CpuStack::default()
    };
    if get(vcpu, PSTATE).ok()? & PSTATE_32_BIT != 0 {
        return Some(stack);
    }
    if let (Ok(pointer), Ok(link), Ok(paging)) = (get(vcpu, X29), get(vcpu, X30), paging(vcpu)) {
        let reader = StackReader::new(memory, |address| paging.translate(memory, address));
        let link = without_code(link);
        let is_call = reader.code_before(link).is_some_and(ends_with_call);
        stack.link = is_call.then_some(link);
        let addresses = reader.return_addresses(pointer, limit);
        stack.callers.extend(addresses.map(without_code));
    }
    Some(stack)
}

/// Returns a return address without its pointer authentication code, which takes the bits above 48 bits of the address, bit 55 aside.
fn without_code(address: u64) -> u64 {
    if address & UPPER == 0 {
        address & CODE_ADDRESS
    } else {
        address | !CODE_ADDRESS
    }
}

pub(super) fn paging(vcpu: &VcpuFd) -> Result<Paging, Error> {
    Ok(Paging {
        sctlr: get(vcpu, SCTLR_EL1)?,
        tcr: get(vcpu, TCR_EL1)?,
        tables: [get(vcpu, TTBR0_EL1)?, get(vcpu, TTBR1_EL1)?],
    })
}

pub(super) fn get(vcpu: &VcpuFd, register: u64) -> Result<u64, Error> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(register, &mut bytes)
        .map_err(failed(format!("KVM_GET_ONE_REG {register:#x}")))?;
    Ok(u64::from_le_bytes(bytes))
}

pub(super) fn set(vcpu: &VcpuFd, register: u64, value: u64) -> Result<(), Error> {
    vcpu.set_one_reg(register, &value.to_le_bytes())
        .map_err(failed(format!("KVM_SET_ONE_REG {register:#x}")))?;
    Ok(())
}

/// Returns the identification of the host processor.
pub fn cpu_identity() -> String {
    // SAFETY: the call has no preconditions.
    let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
    if capabilities & libc::HWCAP_CPUID == 0 {
        return "unknown".into();
    }
    let midr: u64;
    // SAFETY: Linux emulates reads of the register in user mode with HWCAP_CPUID; the instruction has no other effect.
    unsafe { std::arch::asm!("mrs {}, midr_el1", out(reg) midr, options(nomem, nostack, preserves_flags)) };
    format!("MIDR_EL1 {midr:#x}")
}
