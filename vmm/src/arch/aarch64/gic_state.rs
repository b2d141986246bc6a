//! State of the GIC in a snapshot: distributor, redistributors and CPU interfaces, each register by its offset.
//!
//! A load writes the registers to a GIC at reset, where no interrupt is enabled, pending or active: the registers that clear bits are
//! left out. KVM defines writes of pending bits as complete replacements (devices/arm-vgic-v3.rst).

use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_REGS, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, kvm_device_attr,
};
use kvm_ioctls::DeviceFd;
use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;

use super::layout::{FIRST_SHARED_INTERRUPT, INTERRUPTS};
use crate::config::GicVersion;
use crate::kvm::cause;

/// Maximum wait for a vCPU thread whose call is in progress: KVM returns EBUSY meanwhile.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Implementer identification of the distributor. Selects the revision of KVM's model: it is written first.
const IDENTIFICATION: u64 = 0x8;
const DISTRIBUTOR_CONTROL: u64 = 0x0;

/// Offset of a register of the distributor with its bits for each interrupt.
const PER_INTERRUPT: [(u64, u32); 6] = [
    (0x080, 1), // IGROUPR
    (0xc00, 2), // ICFGR
    (0x400, 8), // IPRIORITYR
    (0x100, 1), // ISENABLER
    (0x200, 1), // ISPENDR
    (0x300, 1), // ISACTIVER
];
/// IROUTER of a GICv3.
const ROUTES: (u64, u32) = (0x6000, 64);
/// ITARGETSR of a GICv2.
const TARGETS: (u64, u32) = (0x800, 8);
/// SPENDSGIR of a GICv2: pending software-generated interrupts, 4 registers for each vCPU.
const SOFTWARE_PENDING: u64 = 0xf20;

/// Offset of the frame with the private interrupts in a redistributor.
const PRIVATE_FRAME: u64 = 0x1_0000;
/// GICR_CTLR and GICR_WAKER.
const REDISTRIBUTOR: [u64; 2] = [0x0, 0x14];

/// System registers of the CPU interface: op0, op1, CRn, CRm, op2. SRE first.
const SRE: u64 = interface_register(12, 12, 5);
const CTLR: u64 = interface_register(12, 12, 4);
const INTERFACE: [u64; 6] = [
    interface_register(12, 12, 6), // IGRPEN0
    interface_register(12, 12, 7), // IGRPEN1
    interface_register(4, 6, 0),   // PMR
    interface_register(12, 8, 3),  // BPR0
    interface_register(12, 12, 3), // BPR1
    CTLR,
];
/// ICC_AP0R0 and ICC_AP1R0. The others follow.
const ACTIVE_PRIORITIES: [u64; 2] = [interface_register(12, 8, 4), interface_register(12, 9, 0)];

/// CTLR, PMR, BPR, ABPR and APR0 to APR3 of a GICv2.
const INTERFACE_V2: [u64; 8] = [0x0, 0x4, 0x8, 0x1c, 0xd0, 0xd4, 0xd8, 0xdc];

const fn interface_register(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

/// A register: group of the attribute, attribute, value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Register(u32, u64, u64);

/// State of the GIC.
#[derive(Debug, Serialize, Deserialize)]
pub struct GicState {
    /// Registers in the order of their restore.
    registers: Vec<Register>,
}

impl Schema for GicState {
    const NAME: &'static str = "aarch64-gic";
    const VERSION: u32 = 1;
}

impl GicState {
    /// Reads the state of `device`. `affinities` has MPIDR_EL1 of each vCPU.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(device: &DeviceFd, version: GicVersion, affinities: &[u64]) -> Result<Self, Error> {
        let mut registers = Vec::new();
        for (group, attribute) in addresses(device, version, affinities)? {
            let value = get(device, group, attribute)?;
            registers.push(Register(group, attribute, value));
        }
        Ok(Self { registers })
    }

    /// Restores the state of `device`, which is at reset.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a register that the controller lacks, and [`Error::Kernel`].
    pub fn restore(&self, device: &DeviceFd, version: GicVersion, affinities: &[u64]) -> Result<(), Error> {
        let own = addresses(device, version, affinities)?;
        let saved = self
            .registers
            .iter()
            .map(|Register(group, attribute, _)| (*group, *attribute));
        if !saved.eq(own) {
            return Err(Error::Invalid {
                component: GicState::NAME,
                reason: "its registers are not those of the interrupt controller on this host".into(),
            });
        }
        for Register(group, attribute, value) in &self.registers {
            set(device, *group, *attribute, *value)?;
        }
        Ok(())
    }
}

/// Returns group and attribute of all registers, in the order of their restore.
fn addresses(device: &DeviceFd, version: GicVersion, affinities: &[u64]) -> Result<Vec<(u32, u64)>, Error> {
    let mut all = Vec::new();
    match version {
        GicVersion::V2 => add_v2(&mut all, affinities.len()),
        GicVersion::V3 => add_v3(&mut all, device, affinities)?,
    }
    Ok(all)
}

fn add_v2(all: &mut Vec<(u32, u64)>, vcpus: usize) {
    const GROUP: u32 = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
    all.push((GROUP, IDENTIFICATION));
    all.push((GROUP, DISTRIBUTOR_CONTROL));
    for (register, bits) in PER_INTERRUPT.into_iter().chain([TARGETS]) {
        add_words(all, GROUP, 0, register, bits, FIRST_SHARED_INTERRUPT..INTERRUPTS);
    }
    for vcpu in (0_u64..).take(vcpus).map(|vcpu| vcpu << 32) {
        for (register, bits) in PER_INTERRUPT {
            add_words(all, GROUP, vcpu, register, bits, 0..FIRST_SHARED_INTERRUPT);
        }
        all.extend((0..4).map(|word| (GROUP, vcpu | (SOFTWARE_PENDING + 4 * word))));
        all.extend(INTERFACE_V2.map(|register| (KVM_DEV_ARM_VGIC_GRP_CPU_REGS, vcpu | register)));
    }
}

fn add_v3(all: &mut Vec<(u32, u64)>, device: &DeviceFd, affinities: &[u64]) -> Result<(), Error> {
    const GROUP: u32 = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
    all.push((GROUP, IDENTIFICATION));
    all.push((GROUP, DISTRIBUTOR_CONTROL));
    for (register, bits) in [ROUTES].into_iter().chain(PER_INTERRUPT) {
        add_words(all, GROUP, 0, register, bits, FIRST_SHARED_INTERRUPT..INTERRUPTS);
    }
    for vcpu in affinities.iter().copied().map(affinity_field) {
        let group = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
        all.extend(REDISTRIBUTOR.map(|register| (group, vcpu | register)));
        for (register, bits) in PER_INTERRUPT {
            add_words(
                all,
                group,
                vcpu | PRIVATE_FRAME,
                register,
                bits,
                0..FIRST_SHARED_INTERRUPT,
            );
        }
        add_interface(all, device, vcpu)?;
        all.push((KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu));
    }
    // Shared interrupts have one level, whatever the vCPU.
    let vcpu = affinities.first().copied().map_or(0, affinity_field);
    let shared = (FIRST_SHARED_INTERRUPT..INTERRUPTS).step_by(32);
    all.extend(shared.map(|first| (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu | u64::from(first))));
    Ok(())
}

fn add_interface(all: &mut Vec<(u32, u64)>, device: &DeviceFd, vcpu: u64) -> Result<(), Error> {
    const GROUP: u32 = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
    all.push((GROUP, vcpu | SRE));
    all.extend(INTERFACE.map(|register| (GROUP, vcpu | register)));
    // ICC_CTLR_EL1.PRIbits, less 1: one active priority register for 5 bits, 2 for 6, 4 for 7.
    let priority_bits = (get(device, GROUP, vcpu | CTLR)? >> 8 & 7) + 1;
    let count = 1 << priority_bits.saturating_sub(5).min(2);
    for first in ACTIVE_PRIORITIES {
        all.extend((0..count).map(|number| (GROUP, vcpu | (first + number))));
    }
    Ok(())
}

/// Adds the words of a register with `bits` for each interrupt of `interrupts`.
fn add_words(
    all: &mut Vec<(u32, u64)>,
    group: u32,
    base: u64,
    register: u64,
    bits: u32,
    interrupts: std::ops::Range<u32>,
) {
    let bytes = |interrupt: u32| u64::from(interrupt * bits / 8);
    let offsets = (bytes(interrupts.start)..bytes(interrupts.end)).step_by(4);
    all.extend(offsets.map(|offset| (group, base + register + offset)));
}

/// Returns affinity 3 to 0 of `mpidr` in the high half.
fn affinity_field(mpidr: u64) -> u64 {
    (mpidr >> 32 & 0xff) << 56 | (mpidr & 0xff_ffff) << 32
}

fn get(device: &DeviceFd, group: u32, attribute: u64) -> Result<u64, Error> {
    let mut value = 0_u64;
    let mut request = kvm_device_attr {
        group,
        attr: attribute,
        addr: (&raw mut value) as u64,
        flags: 0,
    };
    retry("KVM_GET_DEVICE_ATTR", || {
        // SAFETY: the kernel writes 4 or 8 bytes of the register to `value`, which outlives the call.
        unsafe { device.get_device_attr(&mut request) }
    })?;
    Ok(value)
}

fn set(device: &DeviceFd, group: u32, attribute: u64, value: u64) -> Result<(), Error> {
    let request = kvm_device_attr {
        group,
        attr: attribute,
        addr: (&raw const value) as u64,
        flags: 0,
    };
    retry("KVM_SET_DEVICE_ATTR", || device.set_device_attr(&request)).map_err(|error| match error {
        Error::Kernel { source, .. } => Error::Invalid {
            component: GicState::NAME,
            reason: format!("KVM rejects {value:#x} for register {attribute:#x} of group {group}: {source}"),
        },
        other => other,
    })
}

/// Repeats `call` while a vCPU thread has a call in progress.
fn retry(
    operation: &'static str,
    mut call: impl FnMut() -> Result<(), kvm_ioctls::Error>,
) -> Result<(), Error> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match call() {
            Err(error) if error.errno() == libc::EBUSY && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            result => {
                return result.map_err(|error| Error::Kernel {
                    component: GicState::NAME,
                    operation,
                    source: cause(error),
                });
            }
        }
    }
}
