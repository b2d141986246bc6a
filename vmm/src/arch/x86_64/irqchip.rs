//! Interrupt controllers other than the local APICs: split irqchip or in-kernel irqchip.

use std::sync::{Arc, Mutex};

use devices::ioapic::{Message, MessageSink, Route};
use devices::{ExternalInterrupt, Interrupt, SplitIrqchip, lock};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_enable_cap, kvm_interrupt,
    kvm_irq_routing_entry, kvm_irqchip, kvm_msi, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use snapshot::persist::Error as StateError;
use snapshot::{ArchiveReader, ArchiveWriter, Component, Schema};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::layout;
use crate::config::IrqchipMode;
use crate::kvm::{Error, Kick, RunPage, cause, failed};

/// Request that kvm-ioctls does not wrap.
mod request {
    use kvm_bindings::{KVMIO, kvm_interrupt};

    vmm_sys_util::ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
}

/// Section of a snapshot. The schema of its content is that of the split or of the in-kernel irqchip.
const SECTION: &str = "irqchip";

/// Trigger mode in the data of a message: Intel SDM volume 3A, section 11.11.2.
const LEVEL_TRIGGERED: u32 = 1 << 15;

/// Fields for the injection of interrupts: KVM API, `struct kvm_run`.
impl RunPage<'_> {
    /// Returns true if an interrupt of an external controller can be injected.
    fn is_interrupt_ready(&self) -> bool {
        self.0.ready_for_interrupt_injection != 0 && self.0.if_flag != 0
    }

    /// Requests or cancels an exit at the next interrupt window.
    pub(super) fn request_interrupt_window(&mut self, requested: bool) {
        self.0.request_interrupt_window = requested.into();
    }
}

/// Controllers that receive the interrupts of devices.
pub enum Irqchip {
    /// Split irqchip: PIC and IOAPIC in this process, local APICs in the kernel.
    Split(SplitIrqchip),
    /// In-kernel irqchip, with the PIT.
    Kernel(Arc<VmFd>),
}

impl Irqchip {
    /// Creates the controllers. Requires the memory slots, and no vCPU.
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
                    routes: Mutex::new(Vec::new()),
                });
                Ok(Self::Split(SplitIrqchip::new(sink, Arc::new(Lint0(boot_cpu)))))
            }
            IrqchipMode::Kernel => {
                vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
                // KVM emulates port 0x61 with this flag; its gate starts channel 2 of the PIT.
                let pit = kvm_pit_config {
                    flags: KVM_PIT_SPEAKER_DUMMY,
                    ..Default::default()
                };
                vm.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))?;
                Ok(Self::Kernel(vm.clone()))
            }
        }
    }

    /// Returns interrupt line `gsi`, which is below 24 and not 2.
    pub fn line(&self, gsi: u32) -> Arc<dyn Interrupt> {
        match self {
            Self::Split(split) => split
                .line(gsi)
                .unwrap_or_else(|| unreachable!("interrupt line {gsi} does not exist")),
            Self::Kernel(vm) => Arc::new(KernelLine { vm: vm.clone(), gsi }),
        }
    }

    /// Sends one edge to `pin` of the IOAPIC, which has no device. Without effect on a masked pin.
    ///
    /// The PIC gets no edge: a guest that uses local APICs alone may leave the lines of the PIC unmasked, without a handler.
    pub fn trigger_ioapic(&self, pin: u8) {
        match self {
            Self::Split(split) => split.trigger_ioapic(pin),
            Self::Kernel(vm) => {
                if let Err(error) = trigger_kernel_ioapic(vm, pin) {
                    log::warn!("cannot send the interrupt of IOAPIC pin {pin}: {error}");
                }
            }
        }
    }

    /// Injects a pending interrupt of the PIC into the boot vCPU. KVM injects interrupts of the local APIC, and those of an
    /// in-kernel PIC.
    ///
    /// # Errors
    /// [`Error::Call`]
    pub fn inject(&self, vcpu: &mut VcpuFd) -> Result<(), Error> {
        let Self::Split(split) = self else { return Ok(()) };
        if split.intr() {
            let is_ready = RunPage::of(vcpu).is_interrupt_ready();
            if is_ready && let Some(vector) = split.acknowledge() {
                inject_vector(vcpu, vector)?;
            }
        }
        // Also after an injection: the PIC can have another interrupt pending.
        RunPage::of(vcpu).request_interrupt_window(split.intr());
        Ok(())
    }

    /// Adds the state of the controllers to `archive`.
    ///
    /// # Errors
    /// As [`Component::save_section`].
    pub fn save_state(&self, archive: &mut ArchiveWriter) -> Result<(), StateError> {
        match self {
            Self::Split(split) => split.save_section(SECTION, archive),
            Self::Kernel(vm) => archive
                .write(SECTION, &KernelIrqchipState::save(vm)?)
                .map_err(at_section),
        }
    }

    /// Restores the split irqchip and the routes of its level-triggered interrupts.
    ///
    /// # Errors
    /// As [`Component::restore_section`].
    pub fn restore_before_vcpus(&self, archive: &mut ArchiveReader<'_>) -> Result<(), StateError> {
        match self {
            Self::Split(split) => split.clone().restore_section(SECTION, archive),
            Self::Kernel(_) => Ok(()),
        }
    }

    /// Restores the in-kernel irqchip, which needs the restored local APICs.
    ///
    /// # Errors
    /// As [`Component::restore_section`].
    pub fn restore_after_vcpus(&self, archive: &mut ArchiveReader<'_>) -> Result<(), StateError> {
        match self {
            Self::Split(_) => Ok(()),
            Self::Kernel(vm) => {
                let state: KernelIrqchipState = archive.read(SECTION).map_err(at_section)?;
                state.restore(vm)
            }
        }
    }

    /// Handles an end of interrupt for `vector` at a local APIC.
    pub fn end_of_interrupt(&self, vector: u8) {
        if let Self::Split(split) = self {
            split.end_of_interrupt(vector);
        }
    }
}

/// Sends the message of `pin` of the in-kernel IOAPIC to the local APICs, unless it is masked. KVM passes the edge of a line below 16 to
/// the PIC too.
fn trigger_kernel_ioapic(vm: &VmFd, pin: u8) -> Result<(), Error> {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).map_err(failed("KVM_GET_IRQCHIP"))?;
    // SAFETY: KVM has filled in the IOAPIC, and all values of its fields are valid.
    let entries = unsafe { chip.chip.ioapic.redirtbl };
    // SAFETY: all values of the bits are valid.
    let entry = entries.get(usize::from(pin)).map(|entry| unsafe { entry.bits });
    let Some(message) = entry.and_then(Message::of_edge) else {
        return Ok(());
    };
    let (address_lo, address_hi) = halves(message.address);
    let msi = kvm_msi {
        address_lo,
        address_hi,
        data: message.data,
        ..Default::default()
    };
    vm.signal_msi(msi).map_err(failed("KVM_SIGNAL_MSI"))?;
    Ok(())
}

fn at_section(source: snapshot::section::Error) -> StateError {
    StateError::Section {
        key: SECTION.to_owned(),
        source,
    }
}

fn inject_vector(vcpu: &VcpuFd, vector: u8) -> Result<(), Error> {
    let interrupt = kvm_interrupt { irq: vector.into() };
    // SAFETY: the request number encodes the type of `interrupt`; the kernel reads it during the call only.
    let result = unsafe { ioctl_with_ref(vcpu, request::KVM_INTERRUPT(), &interrupt) };
    if result == 0 {
        return Ok(());
    }
    Err(failed(format!("KVM_INTERRUPT of vector {vector:#x}"))(
        kvm_ioctls::Error::last(),
    ))
}

/// LINT0 of the boot vCPU, the destination of INTR of the PIC. A kick causes an exit, after which the vCPU thread polls INTR.
struct Lint0(Kick);

impl ExternalInterrupt for Lint0 {
    fn raise(&self) {
        self.0.kick();
    }
}

/// Sends messages of the IOAPIC to the local APICs in the kernel.
struct LocalApics {
    vm: Arc<VmFd>,
    /// Routes set in KVM.
    routes: Mutex<Vec<Route>>,
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
        // The guest chose the destination; hardware also drops a message that no local APIC accepts.
        if let Err(error) = self.vm.signal_msi(msi) {
            log::debug!(
                "cannot send message {message:x?} with KVM_SIGNAL_MSI: {}",
                cause(error)
            );
        }
    }

    /// Sets routes for level-triggered interrupts, because KVM exits at the end of interrupts of routed vectors only (KVM API,
    /// `KVM_EXIT_IOAPIC_EOI`). Edge-triggered interrupts need no route, and a change of routes waits for a grace period.
    fn replace_routes(&self, new: &[Route]) {
        let level = new
            .iter()
            .filter(|route| route.message.data & LEVEL_TRIGGERED != 0);
        let level: Vec<Route> = level.copied().collect();
        let mut routes = lock(&self.routes);
        if *routes == level {
            return;
        }
        let entries: Vec<_> = level.iter().map(routing_entry).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .unwrap_or_else(|_| unreachable!("an IOAPIC has 24 pins, and KVM accepts 4096 routes"));
        if let Err(error) = self.vm.set_gsi_routing(&routing) {
            log::warn!(
                "cannot set {} routes with KVM_SET_GSI_ROUTING: {}",
                entries.len(),
                cause(error)
            );
        }
        *routes = level;
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

/// Splits an address into its low and its high half.
fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// Interrupt line of the in-kernel irqchip.
struct KernelLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl Interrupt for KernelLine {
    fn set_level(&self, asserted: bool) {
        // Fails only for a line that does not exist.
        if let Err(error) = self.vm.set_irq_line(self.gsi, asserted) {
            log::debug!(
                "cannot set line {} to {asserted} with KVM_IRQ_LINE: {}",
                self.gsi,
                cause(error)
            );
        }
    }
}

/// Controllers in the kernel, in the order of their saved states.
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

fn kernel_error(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |error| StateError::Kernel {
        component: KernelIrqchipState::NAME,
        operation,
        source: cause(error),
    }
}

impl KernelIrqchipState {
    /// Reads the state of the controllers of `vm`.
    ///
    /// # Errors
    /// [`StateError::Kernel`]
    pub fn save(vm: &VmFd) -> Result<Self, StateError> {
        let mut chips = [kvm_irqchip::default(); 3];
        for (chip, chip_id) in chips.iter_mut().zip(CHIPS) {
            chip.chip_id = chip_id;
            vm.get_irqchip(chip).map_err(kernel_error("KVM_GET_IRQCHIP"))?;
        }
        let pit = vm.get_pit2().map_err(kernel_error("KVM_GET_PIT2"))?;
        Ok(Self { chips, pit })
    }

    /// Restores the controllers of `vm`. The local APICs must be restored, because the IOAPIC sends pending interrupts at
    /// once.
    ///
    /// # Errors
    /// [`StateError::Kernel`]
    pub fn restore(mut self, vm: &VmFd) -> Result<(), StateError> {
        // Before the PIT: setting the controllers discards its expirations.
        for (chip, chip_id) in self.chips.iter_mut().zip(CHIPS) {
            chip.chip_id = chip_id;
            vm.set_irqchip(chip).map_err(kernel_error("KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&self.pit).map_err(kernel_error("KVM_SET_PIT2"))
    }
}
