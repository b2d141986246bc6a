//! Parts of a machine that KVM provides: VM, memory slots, interrupt controllers and vCPUs. A process that waits for its configuration
//! creates them in advance.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;

use kvm_ioctls::{Kvm, VmFd};
use snapshot::GuestMemory;
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::{self, Native, Platform};
use crate::channel::{Receiver, channel};
use crate::config::{MemorySize, VmConfig, VmSpec};
use crate::kvm::{self, Kick, install_kick};
use crate::memory::{self, dirty::DirtyTracker};
use crate::timeline::{Lane, Timeline};
use crate::vcpu::{
    CrashStates, DebugEvents, PauseGate, Purpose, StopReason, VcpuError, VcpuShared, VcpuThread,
};

/// Reason why a part cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM cannot be opened, or a call of it fails.
    #[error("cannot use KVM")]
    Kvm(#[source] kvm::Error),
    /// The interrupt controllers or the clock cannot be set up.
    #[error("cannot build the machine")]
    Platform(#[source] arch::Error),
    /// Guest memory cannot be mapped.
    #[error("cannot map {size} of guest memory")]
    Memory {
        /// Requested size.
        size: MemorySize,
        /// Cause.
        #[source]
        source: memory::Error,
    },
    /// A vCPU thread cannot be started.
    #[error("cannot start a vCPU")]
    Vcpu(#[source] VcpuError),
    /// An eventfd or a signal handler cannot be created.
    #[error("cannot {operation}")]
    System {
        /// Failed operation.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// VM, interrupt controllers and vCPUs. The threads of the vCPUs wait for their start.
pub(super) struct VmParts {
    // Dropped in this order: the threads first.
    pub vcpus: Vec<VcpuThread>,
    pub stop_reasons: Receiver<StopReason>,
    pub shared: Arc<VcpuShared>,
    pub platform: Native,
    pub vm: Arc<VmFd>,
}

/// Guest memory with its slots.
pub(super) struct SlotMemory {
    pub memory: GuestMemory,
    /// `None` without dirty page tracking.
    pub dirty_tracker: Option<DirtyTracker>,
}

/// Parts of a machine before its devices.
pub struct MachineParts {
    // Dropped in this order: KVM uses the memory.
    pub(super) vm: VmParts,
    pub(super) memory: SlotMemory,
}

impl MachineParts {
    /// Creates the parts of `spec`, from `prepared` if it fits. For a restore with `memory`, which has the
    /// [regions](Platform::memory_regions) of the spec.
    ///
    /// # Errors
    /// [`Error`]
    pub fn create(
        spec: &VmSpec,
        memory: Option<GuestMemory>,
        prepared: Option<PreparedVm>,
        timeline: &Arc<Timeline>,
    ) -> Result<Self, Error> {
        Native::check(spec).map_err(Error::Platform)?;
        let (vm, memory) = match prepared {
            Some(prepared) if prepared.fits(spec, memory.as_ref()) => {
                prepared.complete(spec, memory, &Measure(timeline))?
            }
            other => {
                other.into_iter().for_each(PreparedVm::discard);
                let purpose = match memory {
                    Some(_) => Purpose::Restore,
                    None => Purpose::Boot,
                };
                VmParts::create_in_order(spec, memory, purpose, timeline)?
            }
        };
        Ok(Self { vm, memory })
    }
}

impl VmParts {
    /// Creates the parts, memory slots first.
    fn create_in_order(
        spec: &VmSpec,
        memory: Option<GuestMemory>,
        purpose: Purpose,
        timeline: &Arc<Timeline>,
    ) -> Result<(Self, SlotMemory), Error> {
        let measure = Measure(timeline);
        let boot_kick = Kick::default();
        let (kvm, (vcpus, shared, stop_reasons)) = open_and_start(spec, &boot_kick, timeline, purpose)?;
        let memory = map_memory(spec, memory, &measure)?;
        let vm = create_vm(&kvm, spec, &measure)?;
        set_slots(&vm, &memory.memory, &measure)?;
        let platform = create_platform(&vm, &vcpus, spec, boot_kick, &measure)?;
        let parts = Self {
            vcpus,
            stop_reasons,
            shared,
            platform,
            vm,
        };
        Ok((parts, memory))
    }
}

/// Difference between a prepared VM and a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its {property}: {prepared}, that of the snapshot: {requested}")]
pub struct Mismatch {
    property: &'static str,
    prepared: String,
    requested: String,
}

impl Mismatch {
    /// Compares a property of a prepared VM with the requested one.
    fn check<T: PartialEq + ToString>(
        property: &'static str,
        prepared: &T,
        requested: &T,
    ) -> Result<(), Self> {
        if prepared == requested {
            return Ok(());
        }
        Err(Self {
            property,
            prepared: prepared.to_string(),
            requested: requested.to_string(),
        })
    }
}

/// A VM that is created before its configuration is known, for the usual one. It may have memory too.
pub struct PreparedVm {
    // Dropped in this order: KVM uses the memory.
    parts: VmParts,
    memory: Option<SlotMemory>,
    spec: VmSpec,
}

impl PreparedVm {
    /// Creates the VM of `spec` without memory. Returns `None` if the interrupt controllers must follow the memory.
    ///
    /// # Errors
    /// [`Error`]
    pub fn create(spec: VmSpec, timeline: &Arc<Timeline>) -> Result<Option<Self>, Error> {
        if !Native::can_precede_memory(&spec) {
            return Ok(None);
        }
        let measure = Measure(timeline);
        let boot_kick = Kick::default();
        let (kvm, (vcpus, shared, stop_reasons)) = open_and_start(&spec, &boot_kick, timeline, Purpose::Any)?;
        let vm = create_vm(&kvm, &spec, &measure)?;
        let platform = create_platform(&vm, &vcpus, &spec, boot_kick, &measure)?;
        Ok(Some(Self {
            parts: VmParts {
                vcpus,
                stop_reasons,
                shared,
                platform,
                vm,
            },
            memory: None,
            spec,
        }))
    }

    /// Creates the VM of `spec` with its memory.
    ///
    /// # Errors
    /// [`Error`]
    pub fn with_memory(spec: VmSpec, timeline: &Arc<Timeline>) -> Result<Self, Error> {
        Native::check(&spec).map_err(Error::Platform)?;
        let (parts, memory) = VmParts::create_in_order(&spec, None, Purpose::Any, timeline)?;
        let memory = Some(memory);
        Ok(Self { parts, memory, spec })
    }

    /// Wakes the vCPU threads for a start or a restore that follows soon.
    pub fn expect_order(&self) {
        self.parts.vcpus.iter().for_each(VcpuThread::expect_order);
    }

    /// Returns true if the VM can become that of `spec`, with `memory` if it is restored.
    pub fn fits(&self, spec: &VmSpec, memory: Option<&GuestMemory>) -> bool {
        let memory_fits = match (&self.memory, memory) {
            (None, _) => true,
            (Some(own), Some(other)) => has_same_mapping(&own.memory, other),
            (Some(_), None) => {
                self.has_memory_of(spec.config()) && self.spec.config().huge_pages == spec.config().huge_pages
            }
        };
        memory_fits && self.check_parts(spec).is_ok()
    }

    fn has_memory_of(&self, other: &VmConfig) -> bool {
        let own = self.spec.config();
        own.memory == other.memory && own.track_dirty_pages == other.track_dirty_pages
    }

    /// Returns the memory, for a restore of `spec` that replaces its content and keeps its slots. `None` if the VM has no memory of
    /// this size, or does not fit.
    pub fn memory_for_restore(&self, spec: &VmSpec) -> Option<GuestMemory> {
        let own = self.memory.as_ref()?;
        let fits = self.has_memory_of(spec.config()) && self.check_parts(spec).is_ok();
        fits.then(|| own.memory.clone())
    }

    /// Checks that a restore of `spec` can use the VM and its memory.
    ///
    /// # Errors
    /// [`Mismatch`] with the first property that differs.
    pub fn check_restore(&self, spec: &VmSpec) -> Result<(), Mismatch> {
        let (own, other) = (self.spec.config(), spec.config());
        Mismatch::check("guest memory", &own.memory, &other.memory)?;
        let tracking = |config: &VmConfig| switch(config.track_dirty_pages);
        Mismatch::check("dirty page tracking", &tracking(own), &tracking(other))?;
        self.check_parts(spec)
    }

    /// Checks the properties that the interrupt controllers and vCPUs have.
    fn check_parts(&self, spec: &VmSpec) -> Result<(), Mismatch> {
        Mismatch::check("vCPUs", &self.spec.topology(), &spec.topology())?;
        let (own, other) = (self.spec.config(), spec.config());
        let settings = own.platform_settings().into_iter().zip(other.platform_settings());
        for ((property, own), (_, other)) in settings {
            // The restore compares a setting that the host has chosen with the state.
            if let (Some(own), Some(other)) = (own, other) {
                Mismatch::check(property, &own, &other)?;
            }
        }
        Mismatch::check("processor features", &own.cpu_features, &other.cpu_features)
    }

    /// Allocates the memory of `spec`, which [fits](Self::fits), unless the VM has it.
    ///
    /// # Errors
    /// [`Error`]; the VM must be dropped then.
    pub fn add_memory(&mut self, spec: VmSpec, timeline: &Timeline) -> Result<(), Error> {
        let measure = Measure(timeline);
        if self.memory.is_none() {
            let memory = map_memory(&spec, None, &measure)?;
            // Owned before KVM uses it.
            let memory = self.memory.insert(memory);
            set_slots(&self.parts.vm, &memory.memory, &measure)?;
        }
        self.spec = spec;
        Ok(())
    }

    /// Drops the VM on a thread of its own: the kernel takes milliseconds for it.
    fn discard(self) {
        // Without a thread, the closure and so the VM are dropped here.
        let _ = thread::Builder::new()
            .name("mayfly_discard".into())
            .spawn(move || drop(self));
    }

    /// Returns the parts for `spec`, which the VM [fits](Self::fits): with `memory` for a restore, otherwise for a boot.
    ///
    /// # Errors
    /// [`Error`]
    fn complete(
        self,
        spec: &VmSpec,
        memory: Option<GuestMemory>,
        measure: &Measure<'_>,
    ) -> Result<(VmParts, SlotMemory), Error> {
        let parts = self.parts;
        if memory.is_none() {
            parts.platform.restart_clock().map_err(Error::Platform)?;
        }
        if let Some(memory) = self.memory {
            return Ok((parts, memory));
        }
        let memory = map_memory(spec, memory, measure)?;
        match set_slots(&parts.vm, &memory.memory, measure) {
            Ok(()) => Ok((parts, memory)),
            Err(error) => {
                // KVM may use a part of the memory.
                drop(parts);
                Err(error)
            }
        }
    }
}

fn switch(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

fn has_same_mapping(one: &GuestMemory, other: &GuestMemory) -> bool {
    let start = |memory: &GuestMemory| memory.iter().next().map(|region| region.as_ptr());
    start(one) == start(other)
}

/// Recorder of phases on the lane of the main thread.
pub(super) struct Measure<'a>(pub &'a Timeline);

impl Measure<'_> {
    pub fn phase<T>(&self, name: &'static str, phase: impl FnOnce() -> T) -> T {
        self.0.measure(Lane::Main, name, phase)
    }
}

/// Maps the memory of `spec`, unless it is given.
fn map_memory(
    spec: &VmSpec,
    memory: Option<GuestMemory>,
    measure: &Measure<'_>,
) -> Result<SlotMemory, Error> {
    measure.phase("map memory", || match memory {
        Some(memory) => Ok(SlotMemory {
            memory,
            dirty_tracker: None,
        }),
        None => allocate(spec),
    })
}

/// Allocates the memory of `spec`, with its tracker if the configuration requests one.
fn allocate(spec: &VmSpec) -> Result<SlotMemory, Error> {
    let config = spec.config();
    let size = config.memory;
    let regions = Native::memory_regions(size, config.layout);
    let dirty_tracker = config.track_dirty_pages.then(|| DirtyTracker::select(false));
    let memory = match dirty_tracker.as_ref().is_some_and(DirtyTracker::needs_log) {
        true => memory::allocate_logged(&regions),
        false => memory::allocate(&regions),
    };
    let memory = memory.map_err(|source| Error::Memory { size, source })?;
    if config.huge_pages {
        memory::prefer_huge_pages(&memory);
    }
    Ok(SlotMemory {
        memory,
        dirty_tracker,
    })
}

fn create_vm(kvm: &Kvm, spec: &VmSpec, measure: &Measure<'_>) -> Result<Arc<VmFd>, Error> {
    let vm_type = Native::vm_type(kvm, spec).map_err(Error::Platform)?;
    measure
        .phase("create VM", || kvm::create_vm(kvm, vm_type))
        .map_err(Error::Kvm)
}

/// Sets the memory slots. They must precede interrupt controllers in the kernel, and ioeventfds: later each waits for milliseconds.
fn set_slots(vm: &VmFd, memory: &GuestMemory, measure: &Measure<'_>) -> Result<(), Error> {
    measure
        .phase("set memory slots", || kvm::slots::set(vm, memory))
        .map_err(Error::Kvm)?;
    Native::reserve_addresses(vm).map_err(Error::Platform)
}

/// Creates the interrupt controllers, and the vCPUs for their threads.
fn create_platform(
    vm: &Arc<VmFd>,
    vcpus: &[VcpuThread],
    spec: &VmSpec,
    boot_kick: Kick,
    measure: &Measure<'_>,
) -> Result<Native, Error> {
    let mut platform = measure
        .phase("create interrupt controllers", || {
            Native::new(vm, spec, boot_kick)
        })
        .map_err(Error::Platform)?;
    let mut pass = |id: u8, vcpu| vcpus[usize::from(id)].prepare(vcpu);
    measure
        .phase("create vCPUs", || platform.create_vcpus(spec, &mut pass))
        .map_err(Error::Platform)?;
    Ok(platform)
}

/// Opens KVM and starts the vCPU threads, which query the supported features meanwhile.
fn open_and_start(
    spec: &VmSpec,
    boot_kick: &Kick,
    timeline: &Arc<Timeline>,
    purpose: Purpose,
) -> Result<(Arc<Kvm>, Threads), Error> {
    let measure = Measure(timeline);
    let kvm = measure
        .phase("open KVM", || kvm::open(Native::CAPABILITIES).map(Arc::new))
        .map_err(Error::Kvm)?;
    check_vcpu_limit(&kvm, spec)?;
    let threads = measure.phase("start vCPU threads", || {
        start_threads(&kvm, spec, boot_kick, timeline, purpose)
    })?;
    Ok((kvm, threads))
}

/// Checks the number of vCPUs against the limit of KVM.
fn check_vcpu_limit(kvm: &Kvm, spec: &VmSpec) -> Result<(), Error> {
    // One vCPU is always possible: no call for the common case.
    if spec.vcpus() == 1 {
        return Ok(());
    }
    let limit = kvm.get_max_vcpus();
    if usize::from(spec.vcpus()) > limit {
        return Err(Error::Kvm(kvm::Error::Vcpus {
            requested: spec.vcpus(),
            limit,
        }));
    }
    Ok(())
}

/// vCPU threads, their shared data, and the receiver of their stop reasons.
type Threads = (Vec<VcpuThread>, Arc<VcpuShared>, Receiver<StopReason>);

/// Starts a thread for each vCPU. `boot_kick` kicks the first.
fn start_threads(
    kvm: &Arc<Kvm>,
    spec: &VmSpec,
    boot_kick: &Kick,
    timeline: &Arc<Timeline>,
    purpose: Purpose,
) -> Result<Threads, Error> {
    let failed = |operation| move |source| Error::System { operation, source };
    install_kick().map_err(failed("install the signal handler of the vCPU threads"))?;
    let stop_event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed("create an eventfd"))?;
    let (sender, stop_reasons) = channel();
    let shared = Arc::new(VcpuShared {
        kvm: kvm.clone(),
        topology: spec.topology(),
        features: spec.config().cpu_features,
        timeline: timeline.clone(),
        stop_reasons: sender,
        stop_event,
        gate: PauseGate::default(),
        crashes: CrashStates::default(),
        debug: DebugEvents::default(),
        purpose,
        profile: OnceLock::new(),
    });
    let vcpus = (0..spec.vcpus())
        .map(|id| {
            let kick = if id == 0 {
                boot_kick.clone()
            } else {
                Kick::default()
            };
            VcpuThread::spawn(id, kick, shared.clone()).map_err(Error::Vcpu)
        })
        .collect::<Result<_, _>>()?;
    Ok((vcpus, shared, stop_reasons))
}
