//! The interrupt controllers other than the local APICs, in this process or in the kernel.

use std::sync::{Arc, Mutex};

use devices::ioapic::{Message, MessageSink, Route};
use devices::{ExternalInterrupt, Interrupt, SplitIrqchip, lock};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_enable_cap,
    kvm_interrupt, kvm_irq_routing_entry, kvm_msi, kvm_pit_config,
};
use kvm_ioctls::{VcpuFd, VmFd};
use snapshot::persist::Error as StateError;
use snapshot::{ArchiveReader, ArchiveWriter, Component};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::kernel_irqchip::KernelIrqchipState;
use super::layout;
use crate::config::IrqchipMode;
use crate::kvm::{Error, cause, failed};
use crate::kvm::{Kick, RunPage};

/// kvm-ioctls does not wrap this one.
mod request {
    use kvm_bindings::{KVMIO, kvm_interrupt};

    vmm_sys_util::ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
}

/// Section of a snapshot; its schema says which of the two kinds is in it.
const SECTION: &str = "irqchip";

/// Bit 15 of a message's data.
const LEVEL_TRIGGERED: u32 = 1 << 15;

/// What takes the interrupts of devices.
pub enum Irqchip {
    /// PIC and IOAPIC here, local APICs in the kernel.
    Split(SplitIrqchip),
    /// All in the kernel, and the PIT with them.
    Kernel(Arc<VmFd>),
}

impl Irqchip {
    /// Makes the controllers. The memory slots are there already and the vCPUs are not.
    ///
    /// # Errors
    /// [`Error::Call`]
    pub fn new(vm: &Arc<VmFd>, mode: IrqchipMode, boot_cpu: Kick) -> Result<Self, Error> {
        match mode {
            IrqchipMode::Split => {
                let mut split = kvm_enable_cap {
                    cap: KVM_CAP_SPLIT_IRQCHIP,
                    ..Default::default()
                };
                split.args[0] = layout::IOAPIC_PINS.into();
                vm.enable_cap(&split)
                    .map_err(failed("KVM_ENABLE_CAP of KVM_CAP_SPLIT_IRQCHIP"))?;
                let sink = Arc::new(LocalApics {
                    vm: vm.clone(),
                    known: Mutex::new(Vec::new()),
                });
                Ok(Self::Split(SplitIrqchip::new(sink, Arc::new(Lint0(boot_cpu)))))
            }
            IrqchipMode::Kernel => {
                vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
                // With it the kernel answers port 0x61 too, whose gate starts the PIT's second channel.
                let pit = kvm_pit_config {
                    flags: KVM_PIT_SPEAKER_DUMMY,
                    ..Default::default()
                };
                vm.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))?;
                Ok(Self::Kernel(vm.clone()))
            }
        }
    }

    /// The wire of interrupt line `gsi`, which is below 24 and not 2.
    pub fn line(&self, gsi: u32) -> Arc<dyn Interrupt> {
        match self {
            Self::Split(split) => split
                .line(gsi)
                .unwrap_or_else(|| unreachable!("line {gsi} has no wire")),
            Self::Kernel(vm) => Arc::new(KernelLine { vm: vm.clone(), gsi }),
        }
    }

    /// Injects the interrupt of the PIC, if it has one, into the vCPU that boots. KVM does that by itself for the
    /// local APIC's interrupts, and for all when the PIC is in the kernel.
    ///
    /// # Errors
    /// [`Error::Call`]
    pub fn inject(&self, vcpu: &mut VcpuFd) -> Result<(), Error> {
        let Self::Split(split) = self else { return Ok(()) };
        if split.intr() {
            let takes = RunPage::of(vcpu).is_interrupt_ready();
            if takes && let Some(vector) = split.acknowledge() {
                interrupt(vcpu, vector)?;
            }
        }
        // Also after an injection: the PIC may have another, or may have got one meanwhile.
        RunPage::of(vcpu).request_interrupt_window(split.intr());
        Ok(())
    }

    /// Adds the state of the controllers to `archive`.
    ///
    /// # Errors
    /// As [`Component::save_section`].
    pub fn put(&self, archive: &mut ArchiveWriter) -> Result<(), StateError> {
        match self {
            Self::Split(split) => split.save_section(SECTION, archive),
            Self::Kernel(vm) => archive
                .write(SECTION, &KernelIrqchipState::save(vm)?)
                .map_err(at_section),
        }
    }

    /// Restores controllers that do not need the local APICs for it; the routes of level-triggered interrupts are set with
    /// them.
    ///
    /// # Errors
    /// As [`Component::restore_section`].
    pub fn take_before_vcpus(&self, archive: &mut ArchiveReader<'_>) -> Result<(), StateError> {
        match self {
            Self::Split(split) => split.clone().restore_section(SECTION, archive),
            Self::Kernel(_) => Ok(()),
        }
    }

    /// Restores the others.
    ///
    /// # Errors
    /// As [`Component::restore_section`].
    pub fn take_after_vcpus(&self, archive: &mut ArchiveReader<'_>) -> Result<(), StateError> {
        match self {
            Self::Split(_) => Ok(()),
            Self::Kernel(vm) => {
                let state: KernelIrqchipState = archive.read(SECTION).map_err(at_section)?;
                state.restore(vm)
            }
        }
    }

    /// A local APIC has seen the end of the interrupt of `vector`.
    pub fn end_of_interrupt(&self, vector: u8) {
        if let Self::Split(split) = self {
            split.end_of_interrupt(vector);
        }
    }
}

fn at_section(source: snapshot::section::Error) -> StateError {
    StateError::Section {
        key: SECTION.to_owned(),
        source,
    }
}

fn interrupt(vcpu: &VcpuFd, vector: u8) -> Result<(), Error> {
    let interrupt = kvm_interrupt { irq: vector.into() };
    // SAFETY: the kernel reads the structure that the request's number stands for, during the call.
    let result = unsafe { ioctl_with_ref(vcpu, request::KVM_INTERRUPT(), &interrupt) };
    if result == 0 {
        return Ok(());
    }
    Err(failed(format!("KVM_INTERRUPT of vector {vector:#x}"))(
        kvm_ioctls::Error::last(),
    ))
}

/// Makes the vCPU that boots look at the PIC: its LINT0 is what the PIC's INTR is wired to.
struct Lint0(Kick);

impl ExternalInterrupt for Lint0 {
    fn raise(&self) {
        self.0.kick();
    }
}

/// Carries the IOAPIC's messages to the local APICs in the kernel.
struct LocalApics {
    vm: Arc<VmFd>,
    /// The routes that KVM knows.
    known: Mutex<Vec<Route>>,
}

impl MessageSink for LocalApics {
    fn send(&self, message: Message) {
        let (address_lo, address_hi) = halves(message.address);
        let msi = kvm_msi {
            address_lo,
            address_hi,
            data: message.data,
            ..Default::default()
        };
        // The guest chose where the message goes; one that no local APIC takes is lost, as on real hardware.
        if let Err(error) = self.vm.signal_msi(msi) {
            log::debug!("KVM_SIGNAL_MSI of {message:x?}: {}", cause(error));
        }
    }

    /// Tells KVM which vectors are level-triggered, so that it exits at their end. Edges need no route, since they go by
    /// message, and a change of routes waits for a grace period.
    fn routes_changed(&self, routes: &[Route]) {
        let level = routes
            .iter()
            .filter(|route| route.message.data & LEVEL_TRIGGERED != 0);
        let level: Vec<Route> = level.copied().collect();
        let mut known = lock(&self.known);
        if *known == level {
            return;
        }
        let entries: Vec<_> = level.iter().map(routing_entry).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .unwrap_or_else(|_| unreachable!("an IOAPIC has few pins, and KVM takes 4096 routes"));
        if let Err(error) = self.vm.set_gsi_routing(&routing) {
            log::warn!(
                "KVM_SET_GSI_ROUTING of {} routes: {}",
                entries.len(),
                cause(error)
            );
        }
        *known = level;
    }
}

fn routing_entry(route: &Route) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: route.pin,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    (entry.u.msi.address_lo, entry.u.msi.address_hi) = halves(route.message.address);
    entry.u.msi.data = route.message.data;
    entry
}

/// The low and the high half of an address.
fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// A line of the controllers in the kernel.
struct KernelLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl Interrupt for KernelLine {
    fn set_level(&self, asserted: bool) {
        // It fails only for a line that is not there.
        if let Err(error) = self.vm.set_irq_line(self.gsi, asserted) {
            log::debug!("KVM_IRQ_LINE {} {asserted}: {}", self.gsi, cause(error));
        }
    }
}
