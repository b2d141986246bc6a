//! State of a vCPU in a snapshot: all registers of `KVM_GET_REG_LIST`, PSCI state, and a pending SError.
//!
//! The counters are part of the [clock](super::clock): KVM has one offset for all vCPUs.

use kvm_bindings::{RegList, kvm_mp_state, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;

use super::vcpu::{PHYSICAL_COUNTER, VIRTUAL_COUNTER, register_size};
use crate::arch::CpuCheck;
use crate::kvm::cause;

/// Capacity of the list of registers. vCPUs without SVE have fewer.
const MAX_REGISTERS: usize = 500;

/// State of one vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// Numbers of the registers.
    registers: Vec<u64>,
    /// Their values, one after the other. A number contains the size of its value.
    values: Vec<u8>,
    /// `KVM_MP_STATE_*`: started or stopped by PSCI.
    mp_state: u32,
    serror_pending: bool,
    /// Syndrome of the pending SError, if the processor has one.
    serror_syndrome: Option<u64>,
}

impl Schema for VcpuState {
    const NAME: &'static str = "aarch64-vcpu";
    const VERSION: u32 = 1;
}

fn kernel_error(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Kernel {
        component: VcpuState::NAME,
        operation,
        source: cause(error),
    }
}

fn invalid(reason: String) -> Error {
    Error::Invalid {
        component: VcpuState::NAME,
        reason,
    }
}

/// Returns the numbers of the registers of `vcpu`, without the counters.
fn list(vcpu: &VcpuFd) -> Result<Vec<u64>, Error> {
    let mut list =
        RegList::new(MAX_REGISTERS).unwrap_or_else(|_| unreachable!("the capacity is that of the type"));
    vcpu.get_reg_list(&mut list)
        .map_err(kernel_error("KVM_GET_REG_LIST"))?;
    let all = list.as_slice().iter().copied();
    Ok(all
        .filter(|register| ![VIRTUAL_COUNTER, PHYSICAL_COUNTER].contains(register))
        .collect())
}

impl VcpuState {
    /// Reads the state of `vcpu`.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(vcpu: &VcpuFd) -> Result<Self, Error> {
        let registers = list(vcpu)?;
        let mut values = Vec::with_capacity(registers.iter().copied().map(register_size).sum());
        for register in &registers {
            let start = values.len();
            values.resize(start + register_size(*register), 0);
            vcpu.get_one_reg(*register, &mut values[start..])
                .map_err(kernel_error("KVM_GET_ONE_REG"))?;
        }
        let mp_state = vcpu.get_mp_state().map_err(kernel_error("KVM_GET_MP_STATE"))?;
        let events = vcpu
            .get_vcpu_events()
            .map_err(kernel_error("KVM_GET_VCPU_EVENTS"))?;
        let exception = events.exception;
        Ok(Self {
            registers,
            values,
            mp_state: mp_state.mp_state,
            serror_pending: exception.serror_pending != 0,
            serror_syndrome: (exception.serror_has_esr != 0).then_some(exception.serror_esr),
        })
    }

    /// Restores the state of `vcpu`, which is initialised. With [`CpuCheck::Mask`], registers that this host lacks are left out.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with a register that this host lacks, [`Error::Invalid`] with one whose value differs on this host,
    /// and [`Error::Kernel`].
    pub fn restore(&self, vcpu: &VcpuFd, check: CpuCheck) -> Result<(), Error> {
        let size: usize = self.registers.iter().copied().map(register_size).sum();
        if size != self.values.len() {
            return Err(invalid(format!(
                "its registers have {size} bytes, and its values {}",
                self.values.len()
            )));
        }
        let own = list(vcpu)?;
        let mut rest = &*self.values;
        for register in &self.registers {
            let (value, next) = rest.split_at(register_size(*register));
            rest = next;
            if own.contains(register) {
                set(vcpu, *register, value)?;
            } else if check != CpuCheck::Mask {
                return Err(Error::Unsupported {
                    component: VcpuState::NAME,
                    reason: format!("this host lacks {}", name(*register)),
                });
            }
        }
        let mp_state = kvm_mp_state {
            mp_state: self.mp_state,
        };
        vcpu.set_mp_state(mp_state)
            .map_err(kernel_error("KVM_SET_MP_STATE"))?;
        let mut events = kvm_vcpu_events::default();
        events.exception.serror_pending = self.serror_pending.into();
        events.exception.serror_has_esr = self.serror_syndrome.is_some().into();
        events.exception.serror_esr = self.serror_syndrome.unwrap_or(0);
        vcpu.set_vcpu_events(&events)
            .map_err(kernel_error("KVM_SET_VCPU_EVENTS"))
    }
}

/// Sets `register`, unless it has the value already: KVM rejects writes of some registers.
fn set(vcpu: &VcpuFd, register: u64, value: &[u8]) -> Result<(), Error> {
    let Err(error) = vcpu.set_one_reg(register, value) else {
        return Ok(());
    };
    let mut own = vec![0; value.len()];
    if vcpu.get_one_reg(register, &mut own).is_ok() && own == value {
        return Ok(());
    }
    Err(invalid(format!(
        "{} is {} in the snapshot and {} on this host, which KVM does not change: {}",
        name(register),
        hexadecimal(value),
        hexadecimal(&own),
        cause(error)
    )))
}

/// Returns a little-endian value as a number.
fn hexadecimal(value: &[u8]) -> String {
    let digits: String = value.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

/// Returns the name of a register: that of a system register consists of op0, op1, CRn, CRm and op2.
fn name(register: u64) -> String {
    let kind = register >> 16 & 0xfff;
    if kind != 0x13 {
        return format!("register {register:#x}");
    }
    let field = |shift: u32, bits: u32| register >> shift & ((1 << bits) - 1);
    format!(
        "system register S{}_{}_C{}_C{}_{}",
        field(14, 2),
        field(11, 3),
        field(7, 4),
        field(3, 4),
        field(0, 3)
    )
}
