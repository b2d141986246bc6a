//! What is kept of the interrupt controllers and the PIT when they are in the kernel.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;

use crate::kvm::cause;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// State of the 8259As, the IOAPIC and the PIT in the kernel.
#[derive(Serialize, Deserialize)]
pub struct KernelIrqchipState {
    chips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
}

impl Schema for KernelIrqchipState {
    const NAME: &'static str = "kernel-irqchip";
    const VERSION: u32 = 1;
}

fn refused(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Kernel {
        component: KernelIrqchipState::NAME,
        operation,
        source: cause(error),
    }
}

impl KernelIrqchipState {
    /// Reads the state of the controllers of `vm`.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(vm: &VmFd) -> Result<Self, Error> {
        let mut chips = [kvm_irqchip::default(); 3];
        for (chip, chip_id) in chips.iter_mut().zip(CHIPS) {
            chip.chip_id = chip_id;
            vm.get_irqchip(chip).map_err(refused("KVM_GET_IRQCHIP"))?;
        }
        let pit = vm.get_pit2().map_err(refused("KVM_GET_PIT2"))?;
        Ok(Self { chips, pit })
    }

    /// Gives it to the controllers of `vm`, whose local APICs have their state already: the IOAPIC sends what is pending
    /// in it at once.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn restore(mut self, vm: &VmFd) -> Result<(), Error> {
        // Before the PIT, whose expirations would be lost in controllers that are about to change.
        for (chip, chip_id) in self.chips.iter_mut().zip(CHIPS) {
            chip.chip_id = chip_id;
            vm.set_irqchip(chip).map_err(refused("KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&self.pit).map_err(refused("KVM_SET_PIT2"))
    }
}
