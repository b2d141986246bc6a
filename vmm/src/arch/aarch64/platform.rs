//! Platform of aarch64 and its vCPUs.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::serial::{Pl011Registers, SerialModel, uart};
use devices::{BusBuilder, Interrupt, Rtc, bus};
use kvm_bindings::{KVM_CAP_ARM_SYSTEM_SUSPEND, KVM_CAP_ARM_WRITABLE_IMP_ID_REGS, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use snapshot::file::Architecture;
use snapshot::persist::Error as StateError;
use snapshot::section::Error as SectionError;
use snapshot::{ArchiveReader, ArchiveWriter, Component, GuestMemory, Schema};
use vm_memory::{Bytes, GuestAddress};

use super::clock::{self, CounterState};
use super::device_tree::{DeviceTree, SEED_LENGTH};
use super::gic::{Gic, SharedLine};
use super::gic_state::GicState;
use super::layout::{self, Layout};
use super::settings::{self, Settings};
use super::vcpu::{self, EntryState};
use super::vcpu_state::VcpuState;
use crate::arch::{
    AttachContext, BootInputs, Cpu, CpuRestore, CpuStack, CpuStatus, Error, ExitKind, InputMetrics, LoadPlan,
    MmioDeviceInfo, NativeExit, Platform, SharedSource, UNBACKED_HINT, create_vcpu,
};
use crate::boot::{Image, Protocol};
use crate::config::{AddressLayout, CpuFeatures, CpuTopology, GicVersion, MemorySize, VmConfig, VmSpec};
use crate::identity;
use crate::kvm::{self, Kick, RunPage, failed};

/// Sections of a snapshot.
const IRQCHIP_SECTION: &str = "irqchip";
const CLOCK_SECTION: &str = "clock";

/// Platform of aarch64.
pub struct Aarch64 {
    vm: Arc<VmFd>,
    layout: &'static Layout,
    requested_gic: Option<GicVersion>,
    /// Optional features. With SVE, the vector lengths are those of the vCPUs once they exist.
    cpu_features: CpuFeatures,
    /// Created with the vCPUs.
    gic: Option<Gic>,
    /// MPIDR_EL1 of each vCPU.
    affinities: Vec<u64>,
    /// Boot vCPU, for its counter, which is that of all vCPUs.
    boot_vcpu: Option<OwnedFd>,
    /// Devices with state to save, each with the key of its section.
    components: Vec<(&'static str, SharedComponent)>,
}

type SharedComponent = Arc<Mutex<dyn Component + Send>>;

impl Platform for Aarch64 {
    type Cpu = Self;

    const CAPABILITIES: &'static [Cap] = &[
        Cap::UserMemory,
        Cap::ImmediateExit,
        Cap::ArmPsci02,
        Cap::OneReg,
        Cap::DeviceCtrl,
    ];
    const ARCHITECTURE: Architecture = Architecture::Aarch64;
    const COMMAND_LINE_CAPACITY: usize = 4096;
    // KVM gives each vCPU an affinity as a core of its own.
    const MAX_CORE_THREADS: u8 = 1;
    // The device tree describes the devices. Linux would find each twice.
    const HAS_DEVICE_ARGUMENTS: bool = false;
    const DEFAULT_LAYOUT: AddressLayout = AddressLayout::ArmFc;

    fn check(spec: &VmSpec) -> Result<(), Error> {
        let config = spec.config();
        if !config.layout.is_arm() {
            return Err(Error::Foreign("its address layout is one of x86_64"));
        }
        if !config.cpu_features.cpuid_groups.is_empty() {
            return Err(Error::Foreign(
                "the processor features other than sve and pauth are those of x86_64; remove them",
            ));
        }
        if spec.topology().threads > 1 {
            return Err(Error::Foreign(
                "SMT requires x86_64; configure 1 thread for each core",
            ));
        }
        Ok(())
    }

    fn select_layout(image: &Image, config: &VmConfig) -> Result<(AddressLayout, Option<String>), Error> {
        let (layout, reason) = layout::select(image, config.memory_map).map_err(placement_error)?;
        let map = Layout::of(layout).map;
        Ok((layout, Some(format!("{map}: {reason}"))))
    }

    fn plan_load(
        image: &Image,
        protocol: Protocol,
        layout: AddressLayout,
        memory: MemorySize,
    ) -> Result<LoadPlan, Error> {
        layout::plan(layout, memory.bytes(), image, protocol).map_err(placement_error)
    }

    fn vm_type(kvm: &Kvm, spec: &VmSpec) -> Result<u64, Error> {
        let config = spec.config();
        let end = Layout::of(config.layout)
            .memory
            .saturating_add(config.memory.bytes());
        let limit = u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(0);
        layout::vm_type(end, limit).map_err(placement_error)
    }

    fn memory_regions(size: MemorySize, layout: AddressLayout) -> Vec<(GuestAddress, usize)> {
        let base = GuestAddress(Layout::of(layout).memory);
        // A size beyond the address space saturates; the mapping then fails with an error.
        vec![(base, usize::try_from(size.bytes()).unwrap_or(usize::MAX))]
    }

    fn reserve_addresses(_: &VmFd) -> Result<(), Error> {
        Ok(())
    }

    fn can_precede_memory(_: &VmSpec) -> bool {
        // The GIC registers with KVM's I/O buses.
        false
    }

    fn identity_address(layout: AddressLayout, size: MemorySize) -> Option<GuestAddress> {
        Layout::of(layout).identity(size.bytes()).map(GuestAddress)
    }

    fn notify_identity(&self) {
        if self.layout.has_identity {
            self.line(layout::IDENTITY_INTERRUPT).trigger();
        }
    }

    fn new(vm: &Arc<VmFd>, spec: &VmSpec, _: Kick) -> Result<Self, Error> {
        Ok(Self {
            vm: vm.clone(),
            layout: Layout::of(spec.config().layout),
            requested_gic: spec.config().gic,
            cpu_features: spec.config().cpu_features,
            gic: None,
            affinities: Vec::new(),
            boot_vcpu: None,
            components: Vec::new(),
        })
    }

    fn create_vcpus(&mut self, spec: &VmSpec, pass: &mut dyn FnMut(u8, VcpuFd)) -> Result<(), Error> {
        // PSCI offers SYSTEM_SUSPEND, which ends the VM: from Linux 5.19 on.
        self.enable(KVM_CAP_ARM_SYSTEM_SUSPEND, "KVM_CAP_ARM_SYSTEM_SUSPEND")?;
        // A restore can set MIDR_EL1, REVIDR_EL1 and AIDR_EL1: from Linux 6.15 on.
        self.enable(
            KVM_CAP_ARM_WRITABLE_IMP_ID_REGS,
            "KVM_CAP_ARM_WRITABLE_IMP_ID_REGS",
        )?;
        // Otherwise the first restore would set back the physical counter, which KVM would start with that of the host.
        clock::start(&self.vm).map_err(|error| Error::Counter(Box::new(error)))?;
        let features = spec.config().cpu_features;
        let target = vcpu::target(&self.vm, features)?;
        let mut vcpus = Vec::with_capacity(spec.vcpus().into());
        for id in 0..spec.vcpus() {
            let vcpu = create_vcpu(&self.vm, id)?;
            vcpu::initialise(&vcpu, id, &target, features)?;
            self.affinities.push(vcpu::affinity(&vcpu).map_err(Error::Kvm)?);
            vcpus.push(vcpu);
        }
        if let Some(vcpu) = vcpus.first().filter(|_| features.sve) {
            let lengths = vcpu::vector_lengths(vcpu).map_err(Error::Kvm)?;
            self.cpu_features.vector_lengths = Some(lengths);
        }
        let boot_vcpu = vcpus.first().map(clock::duplicate).transpose();
        self.boot_vcpu = boot_vcpu.map_err(|source| Error::Device {
            device: "counter",
            source,
        })?;
        // Before any thread uses its vCPU, and after all vCPUs exist: a GIC has an interface for each.
        let gic = Gic::new(&self.vm, self.requested_gic, spec.vcpus());
        self.gic = Some(gic.map_err(|error| Error::InterruptController(Box::new(error)))?);
        (0..).zip(vcpus).for_each(|(id, vcpu)| pass(id, vcpu));
        Ok(())
    }

    fn restart_clock(&self) -> Result<(), Error> {
        // No VM is prepared before its configuration is known.
        Ok(())
    }

    fn serial_model(&self) -> SerialModel {
        self.layout.serial_model
    }

    fn serial_interrupt(&self) -> Arc<dyn Interrupt> {
        self.line(self.layout.serial_interrupt)
    }

    fn mmio_devices(&self) -> Box<dyn Iterator<Item = (MmioDeviceInfo, Arc<dyn Interrupt>)> + '_> {
        let infos = self.layout.mmio_devices();
        Box::new(infos.map(|info| (info, self.line(info.gsi))))
    }

    fn attach(
        &mut self,
        context: &AttachContext,
        _: &VmSpec,
        bus: &mut BusBuilder,
    ) -> Result<Vec<SharedSource>, Error> {
        let serial_length = match self.layout.serial_model {
            SerialModel::Uart16550 => uart::LENGTH,
            SerialModel::Pl011 => layout::DEVICE_SIZE,
        };
        let rtc = Arc::new(Mutex::new(Rtc::new()));
        self.components.push(("rtc", rtc.clone()));
        if self.layout.serial_model == SerialModel::Pl011 {
            let registers = Pl011Registers(context.serial.clone());
            self.components.push(("pl011", Arc::new(Mutex::new(registers))));
        }
        let claims: [(_, _, _, bus::SharedDevice); 2] = [
            (
                "serial port",
                self.layout.serial,
                serial_length,
                context.serial.clone(),
            ),
            ("clock", self.layout.rtc, layout::DEVICE_SIZE, rtc),
        ];
        for (name, base, length, device) in claims {
            bus.claim(name, base, length, device).map_err(Error::Bus)?;
        }
        Ok(Vec::new())
    }

    fn write_boot_data(&self, memory: &GuestMemory, inputs: &BootInputs<'_>) -> Result<EntryState, Error> {
        let &BootInputs {
            loaded,
            plan,
            cmdline,
            spec,
            mmio_devices,
        } = inputs;
        let mut seed = [0; SEED_LENGTH];
        identity::fill_random(&mut seed).map_err(boot_data_error)?;
        let tree = DeviceTree {
            layout: self.layout,
            memory: spec.config().memory.bytes(),
            affinities: &self.affinities,
            gic: self.gic.as_ref().map_or(GicVersion::V3, Gic::version),
            cmdline,
            initrd: loaded.initrd.clone(),
            mmio_devices,
            seed,
        };
        let bytes = tree.flatten().map_err(boot_data_error)?;
        memory
            .write_slice(&bytes, GuestAddress(plan.boot_data))
            .map_err(boot_data_error)?;
        Ok(EntryState {
            entry: loaded.entry,
            device_tree: plan.boot_data,
        })
    }

    fn inject_interrupts(&self, _: u8, _: &mut VcpuFd) -> Result<(), kvm::Error> {
        Ok(())
    }

    fn cpu_identity() -> String {
        vcpu::cpu_identity()
    }

    fn has_hardware_virtualization() -> bool {
        true
    }

    fn emulation_hint() -> &'static str {
        UNBACKED_HINT
    }

    #[inline]
    fn handle_exit<'a>(&self, exit: VcpuExit<'a>, (): &()) -> NativeExit<'a> {
        NativeExit::Unknown(exit)
    }

    fn unclaimed_io(&self) -> u64 {
        0
    }

    fn input_metrics(&self) -> InputMetrics {
        InputMetrics::default()
    }

    fn request_shutdown(&self) -> bool {
        false
    }

    fn save_settings(&self, archive: &mut ArchiveWriter) -> Result<(), SectionError> {
        let version = self.gic.as_ref().map_or(GicVersion::V3, Gic::version);
        archive.write(settings::SECTION, &Settings::new(version, self.cpu_features))
    }

    fn restore_settings(archive: &mut ArchiveReader<'_>, config: &mut VmConfig) -> Result<(), SectionError> {
        Settings::read(archive)?.apply(config);
        Ok(())
    }

    fn time_since_save(_: &mut ArchiveReader<'_>) -> Result<Duration, SectionError> {
        // All vCPUs have the counter of the VM.
        Ok(Duration::ZERO)
    }

    fn save_state(&self, archive: &mut ArchiveWriter) -> Result<(), StateError> {
        for (key, component) in &self.components {
            devices::lock(component).save_section(key, archive)?;
        }
        let (gic, vcpu) = self.created()?;
        let state = GicState::save(gic.device(), gic.version(), &self.affinities)?;
        write(archive, IRQCHIP_SECTION, &state)?;
        write(archive, CLOCK_SECTION, &CounterState::save(vcpu)?)
    }

    fn restore_before_vcpus(&self, archive: &mut ArchiveReader<'_>) -> Result<(), StateError> {
        for (key, component) in &self.components {
            devices::lock(component).restore_section(key, archive)?;
        }
        Ok(())
    }

    fn restore_after_vcpus(&self, archive: &mut ArchiveReader<'_>, realtime: bool) -> Result<(), StateError> {
        let (gic, vcpu) = self.created()?;
        let state: GicState = read(archive, IRQCHIP_SECTION)?;
        state.restore(gic.device(), gic.version(), &self.affinities)?;
        // Last: the timers run from this call on.
        let clock: CounterState = read(archive, CLOCK_SECTION)?;
        clock.restore(&self.vm, vcpu, realtime)
    }
}

fn at_section(key: &str) -> impl FnOnce(SectionError) -> StateError {
    move |source| StateError::Section {
        key: key.to_owned(),
        source,
    }
}

fn write<S: Schema>(archive: &mut ArchiveWriter, key: &str, state: &S) -> Result<(), StateError> {
    archive.write(key, state).map_err(at_section(key))
}

fn read<S: Schema>(archive: &mut ArchiveReader<'_>, key: &str) -> Result<S, StateError> {
    archive.read(key).map_err(at_section(key))
}

impl Aarch64 {
    /// Enables `capability` of the VM, where KVM supports it.
    fn enable(&self, capability: u32, name: &str) -> Result<(), Error> {
        let request = kvm_enable_cap {
            cap: capability,
            ..Default::default()
        };
        match self.vm.enable_cap(&request) {
            Err(error) if error.errno() != libc::EINVAL => {
                Err(Error::Kvm(failed(format!("KVM_ENABLE_CAP of {name}"))(error)))
            }
            _ => Ok(()),
        }
    }

    /// Returns what [`Platform::create_vcpus`] has created.
    fn created(&self) -> Result<(&Gic, &OwnedFd), StateError> {
        self.gic
            .as_ref()
            .zip(self.boot_vcpu.as_ref())
            .ok_or(StateError::Busy {
                component: GicState::NAME,
                reason: "the machine has no vCPU yet".into(),
            })
    }

    fn line(&self, number: u32) -> Arc<dyn Interrupt> {
        Arc::new(SharedLine::new(self.vm.clone(), number))
    }
}

fn placement_error(error: layout::Error) -> Error {
    Error::Placement(Box::new(error))
}

fn boot_data_error(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::BootData(Box::new(error))
}

impl Cpu for Aarch64 {
    type Profile = ();
    type Features = ();
    type Entry = EntryState;
    type State = VcpuState;
    type ExitContext = ();

    const PROFILE_PHASE: &'static str = "ask for features";

    fn profile(_: &Kvm, _: CpuFeatures) -> Result<(), kvm::Error> {
        Ok(())
    }

    fn configure(_: &VcpuFd, _: u8, _: CpuTopology, (): &()) -> Result<(), kvm::Error> {
        // Initialised at its creation, before the GIC.
        Ok(())
    }

    fn features(_: &VcpuFd) -> Result<(), kvm::Error> {
        Ok(())
    }

    fn set_boot_registers(vcpu: &VcpuFd, entry: &EntryState) -> Result<(), kvm::Error> {
        vcpu::set_boot_registers(vcpu, entry)
    }

    fn save(
        vcpu: &mut VcpuFd,
        _: &Kvm,
        mut flush_pending: impl FnMut(&mut VcpuFd),
    ) -> Result<VcpuState, StateError> {
        flush_pending(vcpu);
        VcpuState::save(vcpu)
    }

    fn prefetch_limits() {}

    fn restore<'p>(
        vcpu: &VcpuFd,
        _: &Kvm,
        state: &mut VcpuState,
        _: Option<&()>,
        _: impl FnOnce() -> Result<&'p (), StateError>,
        params: CpuRestore,
    ) -> Result<(), StateError> {
        state.restore(vcpu, params.check)
    }

    fn exit_context(_: &mut RunPage<'_>) {}

    #[inline]
    fn exit_kind(_: &VcpuExit<'_>) -> ExitKind {
        ExitKind::Other
    }

    fn cancel_early_exits(_: &mut RunPage<'_>) {}

    fn notify_pause(_: &VcpuFd) -> bool {
        true
    }

    fn status(vcpu: &VcpuFd) -> Result<CpuStatus, kvm::Error> {
        vcpu::status(vcpu)
    }

    fn instruction(vcpu: &VcpuFd, memory: &GuestMemory) -> (u64, Vec<u8>) {
        vcpu::instruction(vcpu, memory)
    }

    fn stack(vcpu: &VcpuFd, memory: &GuestMemory, limit: usize) -> Option<CpuStack> {
        vcpu::stack(vcpu, memory, limit)
    }
}
