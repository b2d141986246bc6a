//! Platform of x86_64 and its vCPUs.

use std::borrow::Cow;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::bus::{BusDevice, SharedDevice};
use devices::i8042::I8042Recorder;
use devices::serial::{SerialModel, uart};
use devices::{
    Bus, BusBuilder, Cmos, ExitPort, I8042, Interrupt, MonotonicClock, Pit, PowerOffPort, SleepPort,
    WallClock, bus, cmos, i8042, pit, power,
};
use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_PMU_CAP_DISABLE, kvm_clock_data,
    kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use snapshot::file::Architecture;
use snapshot::persist::Error as StateError;
use snapshot::section::Error as SectionError;
use snapshot::{ArchiveReader, ArchiveWriter, Component, GuestMemory};
use vm_memory::GuestAddress;

use super::boot_data::{self, Tables};
use super::clock::ClockState;
use super::entry::EntryState;
use super::irqchip::Irqchip;
use super::layout::Layout;
use super::paging::Paging;
use super::ports::{self, PortWidth};
use super::vcpu_state::VcpuState;
use super::{call, cpuid, layout, msr, native_limits, settings};
use crate::arch::frames::{CpuStack, StackReader};
use crate::arch::{
    AttachContext, BootInputs, Cpu, CpuRestore, CpuStatus, Error, EventSource, ExitKind, InputMetrics,
    LoadPlan, MmioDeviceInfo, NativeExit, Platform, SharedSource, UNBACKED_HINT, create_vcpu,
};
use crate::boot::{Image, Protocol};
use crate::config::{
    AddressLayout, CpuFeatures, CpuTopology, CpuidGroup, IrqchipMode, MemorySize, VmConfig, VmSpec,
};
use crate::kvm::{self, Kick, RunPage, failed};
use crate::memory::try_read;

/// Three pages below the BIOS for Intel processors without unrestricted guest mode: KVM API, `KVM_SET_TSS_ADDR`.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// Section of a snapshot with the state of kvmclock.
const CLOCK_SECTION: &str = "clock";
/// Maximum length of an instruction in bytes: Intel SDM volume 2A, section 2.3.11.
const MAX_INSTRUCTION: usize = 15;
/// RFLAGS.IF: the processor accepts maskable interrupts. Intel SDM volume 1, section 3.4.3.
const RFLAGS_IF: u64 = 1 << 9;

/// Platform of x86_64.
pub struct X86_64 {
    vm: Arc<VmFd>,
    layout: &'static Layout,
    has_acpi: bool,
    cpu_features: CpuFeatures,
    irqchip: Irqchip,
    /// Set by [`Platform::attach`].
    ports: Bus,
    /// Set by [`Platform::attach`].
    keyboard: Option<Arc<Mutex<I8042>>>,
    keyboard_recorder: Option<Arc<I8042Recorder>>,
    /// Devices with state to save, each with the key of its section.
    components: Vec<(&'static str, SharedComponent)>,
}

type SharedComponent = Arc<Mutex<dyn Component + Send>>;

impl Platform for X86_64 {
    type Cpu = Self;

    const CAPABILITIES: &'static [Cap] = &[
        Cap::UserMemory,
        Cap::SplitIrqchip,
        Cap::ImmediateExit,
        Cap::SignalMsi,
        Cap::ExtCpuid,
        Cap::SetTssAddr,
    ];
    const ARCHITECTURE: Architecture = Architecture::X86_64;
    const COMMAND_LINE_CAPACITY: usize = layout::COMMAND_LINE_CAPACITY;
    const MAX_CORE_THREADS: u8 = 2;
    const HAS_DEVICE_ARGUMENTS: bool = true;
    const DEFAULT_LAYOUT: AddressLayout = AddressLayout::V3;

    fn check(spec: &VmSpec) -> Result<(), Error> {
        let config = spec.config();
        if config.layout.is_arm() {
            return Err(Error::Foreign("its address layout is one of aarch64"));
        }
        if config.memory_map.is_some() || config.gic.is_some() {
            return Err(Error::Foreign(
                "memory maps and GICs are those of aarch64; remove them",
            ));
        }
        if config.cpu_features.sve || config.cpu_features.pauth {
            return Err(Error::Foreign(
                "the processor features sve and pauth are those of aarch64; remove them",
            ));
        }
        Ok(())
    }

    fn select_layout(_: &Image, config: &VmConfig) -> Result<(AddressLayout, Option<String>), Error> {
        Ok((config.layout, None))
    }

    fn plan_load(_: &Image, _: Protocol, _: AddressLayout, _: MemorySize) -> Result<LoadPlan, Error> {
        Ok(LoadPlan {
            image_base: 0,
            boot_data: 0,
            reserved: Cow::Borrowed(&layout::RESERVED),
        })
    }

    fn vm_type(_: &Kvm, _: &VmSpec) -> Result<u64, Error> {
        Ok(0)
    }

    fn memory_regions(size: MemorySize, layout: AddressLayout) -> Vec<(GuestAddress, usize)> {
        let hole = &Layout::of(layout).hole;
        let below = size.bytes().min(hole.start);
        let regions = [(0, below), (hole.end, size.bytes() - below)];
        let present = regions.into_iter().filter(|(_, length)| *length > 0);
        // A size beyond the address space saturates; the mapping then fails with an error.
        present
            .map(|(base, length)| (GuestAddress(base), usize::try_from(length).unwrap_or(usize::MAX)))
            .collect()
    }

    fn reserve_addresses(vm: &VmFd) -> Result<(), Error> {
        // After the memory slots: on Intel the call adds a private memory slot of KVM.
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(failed("KVM_SET_TSS_ADDR"))
            .map_err(Error::Kvm)
    }

    fn can_precede_memory(spec: &VmSpec) -> bool {
        // The controllers in the kernel register with KVM's I/O buses.
        spec.config().irqchip == IrqchipMode::Split
    }

    fn new(vm: &Arc<VmFd>, spec: &VmSpec, boot_cpu: Kick) -> Result<Self, Error> {
        if !spec.config().cpu_features.cpuid_groups.contains(CpuidGroup::Pmu) {
            disable_counters(vm).map_err(Error::Kvm)?;
        }
        let irqchip = Irqchip::new(vm, spec.config().irqchip, boot_cpu).map_err(Error::Kvm)?;
        Ok(Self {
            vm: vm.clone(),
            layout: Layout::of(spec.config().layout),
            has_acpi: spec.config().acpi,
            cpu_features: spec.config().cpu_features,
            irqchip,
            ports: Bus::default(),
            keyboard: None,
            keyboard_recorder: None,
            components: Vec::new(),
        })
    }

    fn create_vcpus(&mut self, spec: &VmSpec, pass: &mut dyn FnMut(u8, VcpuFd)) -> Result<(), Error> {
        for id in 0..spec.vcpus() {
            // Its thread prepares it while the next one is created.
            pass(id, create_vcpu(&self.vm, id)?);
        }
        Ok(())
    }

    fn restart_clock(&self) -> Result<(), Error> {
        let set = self.vm.set_clock(&kvm_clock_data::default());
        set.map_err(failed("KVM_SET_CLOCK")).map_err(Error::Kvm)
    }

    fn identity_address(layout: AddressLayout, _: MemorySize) -> Option<GuestAddress> {
        Layout::of(layout).identity.map(GuestAddress)
    }

    fn notify_identity(&self) {
        // Without ACPI no guest knows the purpose of the line.
        if self.has_acpi && self.layout.identity.is_some() {
            self.irqchip.trigger_ioapic(layout::IDENTITY_PIN);
        }
    }

    fn serial_model(&self) -> SerialModel {
        SerialModel::Uart16550
    }

    fn serial_interrupt(&self) -> Arc<dyn Interrupt> {
        self.irqchip.line(layout::SERIAL_IRQ)
    }

    fn mmio_devices(&self) -> Box<dyn Iterator<Item = (MmioDeviceInfo, Arc<dyn Interrupt>)> + '_> {
        let infos = self.layout.mmio_devices();
        Box::new(infos.map(|info| (info, self.irqchip.line(info.gsi))))
    }

    fn attach(
        &mut self,
        context: &AttachContext,
        spec: &VmSpec,
        bus: &mut BusBuilder,
    ) -> Result<Vec<SharedSource>, Error> {
        let mut ports = BusBuilder::new();
        let timer = match &self.irqchip {
            Irqchip::Kernel(_) => None,
            Irqchip::Split(split) => {
                split
                    .attach(&mut ports, bus, layout::IOAPIC)
                    .map_err(Error::Bus)?;
                let pit = Pit::new(
                    self.irqchip.line(layout::PIT_IRQ),
                    Box::new(MonotonicClock::new()),
                );
                Some(pit.map_err(|source| Error::Device {
                    device: "PIT",
                    source,
                })?)
            }
        };
        let timer = self
            .attach_ports(&mut ports, context, timer, spec)
            .map_err(Error::Bus)?;
        self.ports = ports.build();
        Ok(timer
            .into_iter()
            .map(|pit| shared(PitTimer(pit)) as SharedSource)
            .collect())
    }

    fn write_boot_data(&self, memory: &GuestMemory, inputs: &BootInputs<'_>) -> Result<EntryState, Error> {
        let &BootInputs {
            loaded,
            cmdline,
            spec,
            mmio_devices,
            ..
        } = inputs;
        let config = spec.config();
        let tables = Tables {
            acpi: config.acpi,
            mptable: config.mptable,
            vcpus: spec.vcpus(),
            mmio_devices,
            identity: Layout::of(config.layout).identity,
        };
        boot_data::write(memory, loaded, cmdline, &tables).map_err(|error| Error::BootData(Box::new(error)))
    }

    fn inject_interrupts(&self, id: u8, vcpu: &mut VcpuFd) -> Result<(), kvm::Error> {
        // INTR of the PIC is connected to LINT0 of the first vCPU only.
        if id == 0 {
            self.irqchip.inject(vcpu)
        } else {
            Ok(())
        }
    }

    fn cpu_identity() -> String {
        cpuid::cpu_identity()
    }

    fn has_hardware_virtualization() -> bool {
        cpuid::has_hardware_virtualization()
    }

    fn emulation_hint() -> &'static str {
        emulation_hint(Self::has_hardware_virtualization())
    }

    #[inline]
    fn handle_exit<'a>(&self, exit: VcpuExit<'a>, width: &PortWidth) -> NativeExit<'a> {
        match exit {
            // These exits require only another KVM_RUN: a halted vCPU waits in the kernel.
            VcpuExit::Hlt | VcpuExit::IrqWindowOpen => NativeExit::Handled,
            // A local APIC broadcasts the end of a level-triggered interrupt.
            VcpuExit::IoapicEoi(vector) => {
                self.irqchip.end_of_interrupt(vector);
                NativeExit::Handled
            }
            // Triple fault.
            VcpuExit::Shutdown => NativeExit::CpuShutdown,
            exit => ports::handle(&self.ports, exit, width),
        }
    }

    fn unclaimed_io(&self) -> u64 {
        self.ports.unclaimed()
    }

    fn input_metrics(&self) -> InputMetrics {
        let recorder = self.keyboard_recorder.as_ref();
        let metrics = recorder.map(|recorder| recorder.metrics()).unwrap_or_default();
        InputMetrics {
            reads: metrics.reads,
            writes: metrics.writes,
            resets: metrics.resets,
        }
    }

    fn request_shutdown(&self) -> bool {
        // Linux's init shuts down on these keys.
        let keyboard = self.keyboard.as_ref();
        keyboard
            .map(|keyboard| devices::lock(keyboard).press_ctrl_alt_del())
            .is_some()
    }

    fn save_settings(&self, archive: &mut ArchiveWriter) -> Result<(), SectionError> {
        settings::save(self.cpu_features, archive)
    }

    fn restore_settings(archive: &mut ArchiveReader<'_>, config: &mut VmConfig) -> Result<(), SectionError> {
        config.cpu_features = settings::restore(archive)?;
        Ok(())
    }

    fn time_since_save(archive: &mut ArchiveReader<'_>) -> Result<Duration, SectionError> {
        archive
            .read(CLOCK_SECTION)
            .map(|clock: ClockState| clock.passed())
    }

    fn save_state(&self, archive: &mut ArchiveWriter) -> Result<(), StateError> {
        for (key, component) in &self.components {
            devices::lock(component).save_section(key, archive)?;
        }
        self.irqchip.save_state(archive)?;
        archive
            .write(CLOCK_SECTION, &ClockState::save(&self.vm)?)
            .map_err(clock_error)
    }

    fn restore_before_vcpus(&self, archive: &mut ArchiveReader<'_>) -> Result<(), StateError> {
        for (key, component) in &self.components {
            devices::lock(component).restore_section(key, archive)?;
        }
        self.irqchip.restore_before_vcpus(archive)
    }

    fn restore_after_vcpus(&self, archive: &mut ArchiveReader<'_>, realtime: bool) -> Result<(), StateError> {
        self.irqchip.restore_after_vcpus(archive)?;
        // Last: the clock runs from this call on.
        let clock: ClockState = archive.read(CLOCK_SECTION).map_err(clock_error)?;
        clock.restore(&self.vm, realtime)
    }
}

/// Turns off the performance counters of vCPUs, which must not exist yet: a guest of AMD could use four of them without CPUID. KVM
/// supports this from Linux 5.18 on.
fn disable_counters(vm: &VmFd) -> Result<(), kvm::Error> {
    let request = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    match vm.enable_cap(&request) {
        Err(error) if error.errno() != libc::EINVAL => {
            Err(failed("KVM_ENABLE_CAP of KVM_CAP_PMU_CAPABILITY")(error))
        }
        _ => Ok(()),
    }
}

fn clock_error(source: snapshot::section::Error) -> StateError {
    StateError::Section {
        key: CLOCK_SECTION.to_owned(),
        source,
    }
}

fn shared<T>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}

impl X86_64 {
    /// Attaches `device` to the bus, and adds its state to snapshots as section `name`.
    fn attach_component<D: BusDevice + Component + 'static>(
        &mut self,
        ports: &mut BusBuilder,
        name: &'static str,
        range: Range<u64>,
        device: D,
    ) -> Result<Arc<Mutex<D>>, bus::Error> {
        let device = shared(device);
        ports.claim(name, range.start, range.end - range.start, device.clone())?;
        self.components.push((name, device.clone()));
        Ok(device)
    }

    fn attach_ports(
        &mut self,
        ports: &mut BusBuilder,
        context: &AttachContext,
        pit: Option<Pit>,
        spec: &VmSpec,
    ) -> Result<Option<Arc<Mutex<Pit>>>, bus::Error> {
        let power = &context.power;
        let serial = context.serial.clone();
        ports.claim("serial port", layout::SERIAL_PORT, uart::LENGTH, serial)?;
        let pit = pit
            .map(|pit| self.attach_component(ports, "pit", port_range(pit::PORT, 4), pit))
            .transpose()?;
        if let Some(pit) = &pit {
            let speaker = offset_device(pit.clone(), pit::CONTROL_OFFSET);
            ports.claim("speaker port", pit::CONTROL_PORT, 1, speaker)?;
        }
        let keyboard = I8042::new(power.clone(), self.irqchip.line(layout::KEYBOARD_IRQ));
        let keyboard = self.attach_component(ports, "i8042", port_range(i8042::DATA_PORT, 1), keyboard)?;
        self.keyboard_recorder = Some(devices::lock(&keyboard).recorder());
        self.keyboard = Some(keyboard.clone());
        let command = offset_device(keyboard, i8042::COMMAND_OFFSET);
        ports.claim("keyboard command", i8042::COMMAND_PORT, 1, command)?;
        let clock = Cmos::new(cmos_memory(spec), Box::new(WallClock));
        self.attach_component(ports, "cmos", port_range(cmos::PORT, 2), clock)?;
        let exit = port_range(power::EXIT_PORT, power::EXIT_LENGTH);
        self.attach_component(ports, "debug-exit", exit, ExitPort::new(power.clone()))?;
        let sleep = port_range(power::SLEEP_PORT, 1);
        self.attach_component(ports, "sleep-control", sleep, SleepPort::new(power.clone()))?;
        let off = port_range(power::POWER_OFF_PORT, power::POWER_OFF_LENGTH);
        self.attach_component(ports, "power-off", off, PowerOffPort::new(power.clone()))?;
        Ok(pit)
    }
}

fn port_range(first: u64, length: u64) -> Range<u64> {
    first..first + length
}

fn offset_device(device: SharedDevice, offset: u64) -> SharedDevice {
    shared(devices::OffsetDevice::new(device, offset))
}

fn cmos_memory(spec: &VmSpec) -> cmos::MemorySize {
    let bytes = spec.config().memory.bytes();
    let below_4_gib = bytes.min(Layout::of(spec.config().layout).hole.start);
    cmos::MemorySize {
        below_4_gib,
        above_4_gib: bytes - below_4_gib,
    }
}

/// Timer of the PIT as an event source.
struct PitTimer(Arc<Mutex<Pit>>);

impl EventSource for PitTimer {
    fn descriptor(&self) -> RawFd {
        devices::lock(&self.0).as_raw_fd()
    }

    fn is_edge(&self) -> bool {
        false
    }

    fn ready(&mut self) {
        devices::lock(&self.0).handle_timer();
    }
}

impl Cpu for X86_64 {
    type Profile = cpuid::Profile;
    type Features = CpuId;
    type Entry = EntryState;
    type State = VcpuState;
    type ExitContext = PortWidth;

    const PROFILE_PHASE: &'static str = "ask for CPUID";

    fn profile(kvm: &Kvm, features: CpuFeatures) -> Result<cpuid::Profile, kvm::Error> {
        cpuid::Profile::from_kvm(kvm, features.cpuid_groups)
    }

    fn configure(
        vcpu: &VcpuFd,
        id: u8,
        topology: CpuTopology,
        profile: &cpuid::Profile,
    ) -> Result<(), kvm::Error> {
        let tsc_khz = vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
        vcpu.set_cpuid2(&profile.for_vcpu(id, topology, tsc_khz))
            .map_err(failed("KVM_SET_CPUID2"))?;
        msr::set(vcpu)
    }

    fn features(vcpu: &VcpuFd) -> Result<CpuId, kvm::Error> {
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
        cpuid.map_err(failed("KVM_GET_CPUID2"))
    }

    fn set_boot_registers(vcpu: &VcpuFd, entry: &EntryState) -> Result<(), kvm::Error> {
        let reset = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        vcpu.set_sregs(&entry.sregs(reset))
            .map_err(failed("KVM_SET_SREGS"))?;
        vcpu.set_regs(&entry.regs()).map_err(failed("KVM_SET_REGS"))
    }

    fn save(
        vcpu: &mut VcpuFd,
        kvm: &Kvm,
        flush_pending: impl FnMut(&mut VcpuFd),
    ) -> Result<VcpuState, StateError> {
        VcpuState::save(vcpu, kvm, flush_pending)
    }

    fn prefetch_limits() {
        native_limits::prefetch();
    }

    fn restore<'p>(
        vcpu: &VcpuFd,
        kvm: &Kvm,
        state: &mut VcpuState,
        features: Option<&CpuId>,
        profile: impl FnOnce() -> Result<&'p cpuid::Profile, StateError>,
        params: CpuRestore,
    ) -> Result<(), StateError> {
        state.restore(vcpu, kvm, features, profile, params)
    }

    fn exit_context(page: &mut RunPage<'_>) -> PortWidth {
        PortWidth::of(page)
    }

    #[inline]
    fn exit_kind(exit: &VcpuExit<'_>) -> ExitKind {
        match exit {
            VcpuExit::IoIn(..) => ExitKind::IoRead,
            VcpuExit::IoOut(..) => ExitKind::IoWrite,
            VcpuExit::Hlt => ExitKind::Halt,
            VcpuExit::IrqWindowOpen => ExitKind::Interrupt,
            _ => ExitKind::Other,
        }
    }

    fn cancel_early_exits(page: &mut RunPage<'_>) {
        // The exit for an interrupt window would precede the signal in every run.
        page.request_interrupt_window(false);
    }

    fn notify_pause(vcpu: &VcpuFd) -> bool {
        // KVM API, KVM_KVMCLOCK_CTRL: fails for a guest without kvmclock, whose watchdog does not use it.
        vcpu.kvmclock_ctrl().is_ok()
    }

    fn status(vcpu: &VcpuFd) -> Result<CpuStatus, kvm::Error> {
        let state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?.mp_state;
        let regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
        let events = vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        let is_woken = events.nmi.pending != 0 || events.smi.pending != 0;
        let is_unstarted = [
            KVM_MP_STATE_UNINITIALIZED,
            KVM_MP_STATE_INIT_RECEIVED,
            KVM_MP_STATE_SIPI_RECEIVED,
        ]
        .contains(&state);
        Ok(CpuStatus {
            is_halted: state == KVM_MP_STATE_HALTED && !is_woken,
            is_started: !is_unstarted,
            accepts_interrupts: regs.rflags & RFLAGS_IF != 0,
            ip: regs.rip,
        })
    }

    fn instruction(vcpu: &VcpuFd, memory: &GuestMemory) -> (u64, Vec<u8>) {
        let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) else {
            return (0, Vec::new());
        };
        let linear = regs.rip.wrapping_add(sregs.cs.base);
        let mut bytes = vec![0; MAX_INSTRUCTION];
        let read = vcpu
            .translate_gva(linear)
            .ok()
            .filter(|translation| translation.valid != 0)
            .map(|translation| try_read(memory, GuestAddress(translation.physical_address), &mut bytes));
        bytes.truncate(read.unwrap_or(0));
        (regs.rip, bytes)
    }

    fn stack(vcpu: &VcpuFd, memory: &GuestMemory, limit: usize) -> Option<CpuStack> {
        let (regs, sregs) = (vcpu.get_regs().ok()?, vcpu.get_sregs().ok()?);
        let mut stack = CpuStack {
            ip: regs.rip,
            ..CpuStack::default()
        };
        // Frames of code for 32 bits have another layout.
        if sregs.cs.l != 0 {
            let paging = Paging::from(&sregs);
            let mut reader = StackReader::new(memory, |address| paging.translate(memory, address));
            let word = Some(regs.rsp).filter(|rsp| rsp.is_multiple_of(8));
            stack.link = word.and_then(|rsp| reader.word(rsp)).filter(|link| {
                let code = || reader.code_before(*link);
                call::is_near(*link, regs.rip) && code().is_some_and(call::ends_with_call)
            });
            stack.callers.extend(reader.return_addresses(regs.rbp, limit));
        }
        Some(stack)
    }
}

/// Returns the way out after an instruction that KVM cannot emulate.
fn emulation_hint(has_hardware_virtualization: bool) -> &'static str {
    if has_hardware_virtualization {
        UNBACKED_HINT
    } else {
        "this host has no hardware virtualization, so that KVM interprets the guest's kernel and has no SSE; use a host with VMX, SVM or \
         EL2, or an image built for general registers only"
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Address;

    use super::{X86_64, emulation_hint};
    use crate::arch::Platform;
    use crate::config::{
        AddressLayout, CpuFeatures, GicVersion, HostMemory, MemoryMap, MemorySize, VmConfig,
    };

    #[test]
    fn settings_of_aarch64_are_rejected_by_name() {
        let error = |change: fn(&mut VmConfig)| {
            let mut config = VmConfig::new("kernel".into());
            change(&mut config);
            let host = HostMemory { memory: u64::MAX };
            let checked = X86_64::check(&config.check(&host).unwrap());
            checked.err().map(|error| error.to_string())
        };
        assert_eq!(error(|_| {}), None);
        for (change, name) in [
            (
                (|config| config.layout = AddressLayout::ArmFc2) as fn(&mut VmConfig),
                "address layout",
            ),
            (|config| config.memory_map = Some(MemoryMap::Fc), "memory maps"),
            (|config| config.gic = Some(GicVersion::V3), "GICs"),
            (
                |config| {
                    config.cpu_features = CpuFeatures {
                        sve: true,
                        ..CpuFeatures::default()
                    }
                },
                "sve and pauth",
            ),
            (
                |config| {
                    config.cpu_features = CpuFeatures {
                        pauth: true,
                        ..CpuFeatures::default()
                    }
                },
                "sve and pauth",
            ),
        ] {
            let error = error(change).unwrap();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn hint_names_host_only_without_hardware_virtualization() {
        assert!(emulation_hint(false).contains("use a host with VMX"));
        assert!(!emulation_hint(true).contains("use a host"));
    }

    #[test]
    fn memory_regions_omit_hole() {
        for (layout, below) in [
            (AddressLayout::V1, 3328),
            (AddressLayout::V2, 3072),
            (AddressLayout::V3, 3072),
        ] {
            let regions = |mib: u64| {
                let size = MemorySize::from_bytes(mib << 20);
                let regions = X86_64::memory_regions(size, layout).into_iter();
                let regions = regions.map(|(base, length)| (base.raw_value() >> 20, length >> 20));
                regions.collect::<Vec<_>>()
            };
            let half = usize::try_from(below).unwrap();
            assert_eq!(regions(1), [(0, 1)]);
            assert_eq!(regions(below), [(0, half)]);
            assert_eq!(regions(below + 1), [(0, half), (4096, 1)]);
            assert_eq!(regions(8192), [(0, half), (4096, 8192 - half)]);
        }
    }
}
