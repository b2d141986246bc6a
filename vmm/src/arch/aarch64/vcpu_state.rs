//! State of a vCPU in a snapshot: all registers of `KVM_GET_REG_LIST`, PSCI state, and a pending SError.
//!
//! [`registers::is_vcpu_state`] leaves out registers that are part of other sections.

use std::io;

use kvm_bindings::{KVM_MP_STATE_STOPPED, RegList, kvm_mp_state, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;

use super::core_state::SavedRegisters;
use super::paging::Paging;
use super::registers::{self, RegisterFile};
use crate::arch::{CoreState, CpuCheck, MappingError, Mappings};
use crate::kvm::cause;

/// Capacity of the list of registers. vCPUs have fewer, with SVE too.
const MAX_REGISTERS: usize = 500;

/// State of one vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
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

impl VcpuState {
    fn saved(&self) -> SavedRegisters<'_> {
        SavedRegisters {
            numbers: &self.registers,
            values: &self.values,
        }
    }
}

impl CoreState for VcpuState {
    /// `EM_AARCH64`
    const MACHINE: u16 = 183;
    /// Behind the largest lower half. gdb ignores the highest byte.
    const PHYSICAL_WINDOW: u64 = 1 << 52;

    type Paging = Paging;

    fn is_started(&self) -> bool {
        self.mp_state != KVM_MP_STATE_STOPPED
    }

    fn general_registers(&self) -> Vec<u8> {
        self.saved().general()
    }

    fn float_registers(&self) -> Option<Vec<u8>> {
        self.saved().float()
    }

    fn paging(&self) -> Paging {
        self.saved().paging()
    }

    fn add_mappings(&self, mappings: &mut Mappings<'_>) -> Result<(), MappingError> {
        self.paging().add_mappings(mappings)
    }
}

fn kernel_error(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Kernel {
        component: VcpuState::NAME,
        operation,
        source: cause(error),
    }
}

impl RegisterFile for VcpuFd {
    fn list(&self) -> Result<Vec<u64>, Error> {
        let mut list =
            RegList::new(MAX_REGISTERS).unwrap_or_else(|_| unreachable!("the capacity is that of the type"));
        self.get_reg_list(&mut list)
            .map_err(kernel_error("KVM_GET_REG_LIST"))?;
        let all = list.as_slice().iter().copied();
        Ok(all
            .filter(|register| registers::is_vcpu_state(*register))
            .collect())
    }

    fn get(&self, register: u64, value: &mut [u8]) -> io::Result<()> {
        self.get_one_reg(register, value).map(drop).map_err(cause)
    }

    fn set(&self, register: u64, value: &[u8]) -> io::Result<()> {
        self.set_one_reg(register, value).map(drop).map_err(cause)
    }
}

impl VcpuState {
    /// Reads the state of `vcpu`.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(vcpu: &VcpuFd) -> Result<Self, Error> {
        let registers = vcpu.list()?;
        let mut values = Vec::with_capacity(registers.iter().copied().map(registers::size).sum());
        for register in &registers {
            let start = values.len();
            values.resize(start + registers::size(*register), 0);
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
        registers::restore(vcpu, &self.registers, &self.values, check)?;
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
