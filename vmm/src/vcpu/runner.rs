//! Body of a vCPU thread: entry, exits, and the wait while the VM is paused.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use devices::{Bus, Power, ThreadRole};
use kvm_ioctls::{Kvm, VcpuFd};
use snapshot::GuestMemory;
use snapshot::persist::Error as StateError;
use vmm_sys_util::eventfd::EventFd;

use super::crash::CrashStates;
use super::debug::{DebugEvents, DebugStop};
use super::exit::{ExitAction, StopReason, Targets, VcpuError, handle};
use super::gate::{PauseGate, ThreadSet};
use super::location::Location;
use super::monitor::VcpuMonitor;
use super::park::{NativeCpu, NativeVcpuState, ParkRequest};
use super::pre_entry::run_until_entry;
use crate::arch::{Cpu, CpuRestore, CpuStatus, DebugControl, DebugCpu, Native, Platform};
use crate::channel::{Receiver, Sender};
use crate::config::{CpuFeatures, CpuTopology};
use crate::identity::PendingRecord;
use crate::kvm::kick::take_periods;
use crate::kvm::{self, Kick, RunPage, sample_timer};
use crate::sampling::{MAX_ADDRESSES, SampledInstruction, Sampler};
use crate::timeline::{Lane, Timeline};

type Profile = <NativeCpu as Cpu>::Profile;
type Entry = <NativeCpu as Cpu>::Entry;
type Features = <NativeCpu as Cpu>::Features;

/// Maximum number of return addresses in the report of a crash.
const MAX_CALLERS: usize = 32;

/// Maximum calls of KVM_RUN to flush the pending work of a vCPU: each of the 256 interrupt vectors can cause one exit.
const MAX_FLUSH_RUNS: usize = 256;

/// State that vCPUs get, as far as it is known when their threads start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// State at the boot.
    Boot,
    /// Saved state.
    Restore,
    /// Either. The threads prepare for both, because they have the time.
    Any,
}

/// Data that all vCPU threads of a machine share.
pub struct VcpuShared {
    /// `/dev/kvm`.
    pub kvm: Arc<Kvm>,
    /// Topology of the vCPUs.
    pub topology: CpuTopology,
    /// Processor features that the configuration requests.
    pub features: CpuFeatures,
    /// Record of the phases of the start.
    pub timeline: Arc<Timeline>,
    /// Channel for the stop reasons.
    pub stop_reasons: Sender<StopReason>,
    /// Signalled with every stop reason.
    pub stop_event: EventFd,
    /// Gate at which the threads wait while the VM is paused.
    pub gate: PauseGate,
    /// States of crashed vCPUs.
    pub crashes: CrashStates,
    /// Stops for a debugger.
    pub debug: DebugEvents,
    /// State that the vCPUs get.
    pub purpose: Purpose,
    /// Features of the guest, or the limits of a saved state; or the call that failed and its error number. The first thread that needs
    /// the profile sets it.
    pub profile: OnceLock<Result<Profile, (String, i32)>>,
}

impl VcpuShared {
    fn profile(&self, id: u8) -> Result<&Profile, kvm::Error> {
        let profile = self.profile.get_or_init(|| {
            self.timeline
                .measure(Lane::Vcpu(id), NativeCpu::PROFILE_PHASE, || {
                    NativeCpu::profile(&self.kvm, self.features)
                })
                .map_err(|error| match error {
                    kvm::Error::Call { call, source, .. } => (call, source.raw_os_error().unwrap_or(0)),
                    other => (other.to_string(), 0),
                })
        });
        profile.as_ref().map_err(|(call, errno)| kvm::Error::Call {
            call: call.clone(),
            hint: "",
            source: io::Error::from_raw_os_error(*errno),
        })
    }

    /// As [`profile`](Self::profile), with the error of a restore.
    fn saved_profile(&self, id: u8) -> Result<&Profile, StateError> {
        self.profile(id).map_err(|error| StateError::Kernel {
            component: "vCPU",
            operation: "query of the supported features",
            source: io::Error::other(error),
        })
    }

    /// Reports the end of the guest.
    pub fn report(&self, reason: StopReason) {
        // Both fail only after the machine, their receiver, has been dropped.
        let _ = self.stop_reasons.send(reason);
        let _ = self.stop_event.write(1);
    }
}

/// Parts of the machine that a vCPU needs to enter the guest.
pub struct StartContext {
    /// Platform of the machine.
    pub platform: Arc<Native>,
    /// Memory-mapped registers.
    pub memory_bus: Arc<Bus>,
    /// Power-off and reset.
    pub power: Arc<Power>,
    /// Guest memory, for the identity record and error messages.
    pub memory: GuestMemory,
    /// Record of a loaded VM, to be written before the guest runs.
    pub identity: Option<Arc<PendingRecord>>,
    /// Boot registers. Without them the vCPU has its restored state, or that at reset: it waits until another one starts it.
    pub entry: Option<Entry>,
}

/// Saved state for a vCPU.
pub struct SavedVcpu {
    /// The state.
    pub state: Box<NativeVcpuState>,
    /// Parameters of the restore.
    pub params: CpuRestore,
    /// Channel for the result. After an error the vCPU never enters the guest.
    pub restored: Sender<Result<(), StateError>>,
}

/// Order to a vCPU thread that has its vCPU.
pub(super) enum VcpuOrder {
    /// Another order follows soon.
    Expect,
    /// Restore the vCPU. A start follows soon.
    Restore(SavedVcpu),
    /// Enter the guest while the gate is open.
    Start(StartContext),
}

/// Body of a vCPU thread.
pub(super) struct VcpuRunner {
    pub id: u8,
    pub kick: Kick,
    pub monitor: Arc<VcpuMonitor>,
    pub shared: Arc<VcpuShared>,
    pub requests: Receiver<ParkRequest>,
}

// Functions that not every guest entry needs are not inlined: they would enlarge the stack frame of the loop, which stays resident
// for each vCPU.
impl VcpuRunner {
    /// Runs the thread until the guest ends or the thread is stopped.
    pub fn run(self, vcpu_receiver: &Receiver<VcpuFd>, orders: &Receiver<VcpuOrder>) {
        self.run_vcpu(vcpu_receiver, orders);
        self.monitor.set_ended();
        self.shared.gate.leave(ThreadSet::vcpu(self.id));
    }

    fn run_vcpu(&self, vcpu_receiver: &Receiver<VcpuFd>, orders: &Receiver<VcpuOrder>) {
        let lane = Lane::Vcpu(self.id);
        self.shared.timeline.mark(lane, "thread runs");
        // While the main thread creates the VM. For a restore, the first thread alone: the others use its leaves.
        let purpose = self.shared.purpose;
        if purpose != Purpose::Boot && self.id == 0 {
            NativeCpu::prefetch_limits();
        }
        // A restore replaces what the boot sets.
        let profile = (purpose != Purpose::Restore).then(|| self.shared.profile(self.id));
        let Some(mut vcpu) = vcpu_receiver.receive() else {
            return;
        };
        let prepared = match profile {
            None => Ok(None),
            Some(profile) => self.shared.timeline.measure(lane, "prepare vCPU", || {
                NativeCpu::configure(&vcpu, self.id, self.shared.topology, profile?)?;
                let is_perhaps_restored = purpose == Purpose::Any;
                is_perhaps_restored
                    .then(|| NativeCpu::features(&vcpu))
                    .transpose()
            }),
        };
        let failed = |source| VcpuError::Prepare { id: self.id, source };
        let initialized = prepared
            .map_err(failed)
            .and_then(|features| self.initialize(&vcpu, features, orders));
        let reason = match initialized {
            Ok(Some((start, is_restored))) => self.run_guest(&mut vcpu, &start, is_restored),
            Ok(None) => None,
            Err(error) => Some(StopReason::Fault(error)),
        };
        if let Some(reason) = reason {
            if reason.location().is_some() {
                self.keep_state(&mut vcpu);
            }
            self.monitor.exits.count_stop(&reason);
            self.shared.report(reason);
        }
    }

    /// Keeps the state of the crashed vCPU: a snapshot of the crash needs it after the end of this thread.
    #[inline(never)]
    fn keep_state(&self, vcpu: &mut VcpuFd) {
        // The vCPU never enters the guest again, so that pending work of KVM stays undone.
        match self.save(vcpu, &mut |_| ()) {
            Ok(state) => self.shared.crashes.add(self.id, state),
            Err(error) => log::warn!("vCPU {}: cannot save the state of the crash: {error}", self.id),
        }
    }

    /// Executes the orders until the start. Returns its parameters, and true if the vCPU was restored; nothing if the thread must end.
    ///
    /// The thread enters its role while the main thread prepares the start: after the last call that the role lacks.
    #[inline(never)]
    fn initialize(
        &self,
        vcpu: &VcpuFd,
        features: Option<Features>,
        orders: &Receiver<VcpuOrder>,
    ) -> Result<Option<(StartContext, bool)>, VcpuError> {
        let (mut is_restored, mut is_restricted) = (false, false);
        if self.shared.purpose == Purpose::Boot {
            self.restrict(&mut is_restricted)?;
        }
        let mut next = orders.receive();
        while let Some(order) = next {
            match order {
                VcpuOrder::Expect => {}
                VcpuOrder::Restore(saved) => {
                    if !self.restore(vcpu, features.as_ref(), saved) {
                        return Ok(None);
                    }
                    is_restored = true;
                    self.restrict(&mut is_restricted)?;
                }
                VcpuOrder::Start(mut start) => {
                    if let Some(entry) = start.entry.take() {
                        let set = || NativeCpu::set_boot_registers(vcpu, &entry);
                        let timeline = &self.shared.timeline;
                        let set = timeline.measure(Lane::Vcpu(self.id), "set registers", set);
                        set.map_err(|source| VcpuError::Prepare { id: self.id, source })?;
                    }
                    self.restrict(&mut is_restricted)?;
                    return Ok(Some((start, is_restored)));
                }
            }
            next = orders.receive_soon();
        }
        Ok(None)
    }

    /// Enters the role of a vCPU thread, unless the thread has it.
    fn restrict(&self, is_restricted: &mut bool) -> Result<(), VcpuError> {
        if std::mem::replace(is_restricted, true) {
            return Ok(());
        }
        if let Some(sampler) = self.shared.timeline.sampler() {
            // The role lacks the calls.
            let started = sample_timer::start(sampler.settings().period());
            started.map_err(|source| VcpuError::Sample { id: self.id, source })?;
        }
        let enter = || ThreadRole::Vcpu.enter();
        let entered = self
            .shared
            .timeline
            .measure(Lane::Vcpu(self.id), "restrict thread", enter);
        entered.map_err(|source| VcpuError::Restrict { id: self.id, source })
    }

    /// Restores the vCPU. Returns false after an error, which was sent to the restoring thread.
    fn restore(&self, vcpu: &VcpuFd, features: Option<&Features>, saved: SavedVcpu) -> bool {
        let SavedVcpu {
            mut state,
            params,
            restored,
        } = saved;
        let timeline = &self.shared.timeline;
        let result = timeline.measure(Lane::Vcpu(self.id), "restore vCPU", || {
            let profile = || self.shared.saved_profile(self.id);
            NativeCpu::restore(vcpu, &self.shared.kvm, &mut state, features, profile, params)
        });
        let is_ok = result.is_ok();
        // Freed before the main thread trims the heap.
        drop(state);
        // Fails if the receiver was dropped, because another vCPU has failed.
        let _ = restored.send(result);
        is_ok
    }

    /// Runs the guest. Returns `None` if the thread was stopped.
    fn run_guest(&self, vcpu: &mut VcpuFd, start: &StartContext, is_restored: bool) -> Option<StopReason> {
        let bound = self.kick.bind(vcpu.get_kvm_run());
        if self.shared.timeline.sampler().is_some() {
            // Periods of the preparation, whose signal was pending, are no time of the guest.
            take_periods();
        }
        let entry = Instant::now();
        self.monitor.set_first_entry(entry);
        self.shared
            .timeline
            .mark_at(Lane::Vcpu(self.id), "enter guest", entry);
        let mut is_first = true;
        // The run page of a restored vCPU has no `ready_for_interrupt_injection` before the first KVM_RUN: a halted vCPU would
        // sleep through a pending interrupt.
        if is_restored && let Err(reason) = self.complete_exit(vcpu, start, &mut is_first) {
            return Some(reason);
        }
        // The main thread opens the gate soon: at a start, and in most loads.
        self.shared.gate.expect_change();
        let mut identity = start.identity.as_ref();
        let reason = loop {
            let gate = &self.shared.gate;
            let result = match gate.is_open_to(ThreadSet::vcpu(self.id)) {
                true if self.monitor.requests.has_any() => self.handle_observers(vcpu, start, &mut is_first),
                true => {
                    if let Some(record) = identity.take() {
                        record.write(&start.memory);
                    }
                    self.inject(vcpu, start)
                        .and_then(|()| self.enter_once(vcpu, start, &mut is_first))
                }
                false if gate.is_stopped() => break None,
                false => self.park(vcpu, start, &mut is_first),
            };
            if let Err(reason) = result {
                self.hold_crash(vcpu, &reason);
                break Some(reason);
            }
        };
        drop(bound);
        reason
    }

    /// Stops all vCPUs for the debugger and reports `stop` to it. The loop of each thread waits at the gate. Returns false, without
    /// effect, if no debugger can come.
    #[inline(never)]
    fn stop_for_debugger(&self, stop: DebugStop) -> bool {
        // Held before the report: a debugger that gets it finds the gate held.
        let is_held = self.shared.gate.hold_if(|| self.shared.debug.is_expected());
        if is_held {
            self.shared.debug.report(self.id, stop);
        }
        is_held
    }

    /// Keeps a guest that ends by a crash until the debugger resumes it, if there is one.
    #[inline(never)]
    fn hold_crash(&self, vcpu: &mut VcpuFd, reason: &StopReason) {
        let is_crash = matches!(reason, StopReason::CpuShutdown { .. } | StopReason::Fault(_));
        let ip = reason.location().map(|at| at.ip);
        if !is_crash || !self.stop_for_debugger(DebugStop::Crash(ip)) {
            return;
        }
        self.shared.gate.wait(ThreadSet::vcpu(self.id), || {
            for request in self.requests.try_iter() {
                match request {
                    ParkRequest::Call(call) => call(vcpu),
                    ParkRequest::Inspect(reply) => self.send_status(vcpu, &reply),
                    // The vCPU never enters the guest again, so that pending work of KVM stays undone.
                    ParkRequest::Flush => {}
                    ParkRequest::State { flushed, state } => {
                        let saved = self.save(vcpu, &mut |_| {
                            let _ = flushed.send(());
                        });
                        let _ = state.send(saved);
                    }
                }
            }
        });
    }

    /// Injects the interrupts that KVM does not inject by itself. Called only before a KVM_RUN that enters the guest: otherwise KVM
    /// reports no acceptance of the interrupt by the guest.
    fn inject(&self, vcpu: &mut VcpuFd, start: &StartContext) -> Result<(), StopReason> {
        let injected = start.platform.inject_interrupts(self.id, vcpu);
        injected.map_err(|source| StopReason::Fault(VcpuError::Prepare { id: self.id, source }))
    }

    fn enter_once(
        &self,
        vcpu: &mut VcpuFd,
        start: &StartContext,
        is_first: &mut bool,
    ) -> Result<(), StopReason> {
        let at = |vcpu: &VcpuFd| self.location(vcpu, start);
        let context = NativeCpu::exit_context(&mut RunPage::of(vcpu));
        self.monitor.set_inside(true);
        let exit = vcpu.run();
        self.monitor.set_inside(false);
        let timer = self.monitor.exits.count(&exit);
        if std::mem::take(is_first) {
            self.shared.timeline.mark(Lane::Vcpu(self.id), "first exit");
        }
        let targets = Targets {
            memory: &start.memory_bus,
            power: &start.power,
            unclaimed: &self.monitor.unclaimed,
        };
        let action = match exit {
            Ok(exit) => handle(exit, &targets, |exit| start.platform.handle_exit(exit, &context)),
            Err(error) => return self.handle_run_error(vcpu, error.errno(), start),
        };
        if let Some(timer) = timer {
            self.monitor.exits.stop_timer(&timer);
        }
        Err(match action {
            ExitAction::Handled => return Ok(()),
            ExitAction::Debug(exit) => {
                if !self.stop_for_debugger(DebugStop::Exit(exit)) {
                    // The debugger has detached while this thread did not answer. KVM would stop again at the same instruction.
                    let _ = NativeCpu::set_debug(vcpu, &DebugControl::default());
                }
                return Ok(());
            }
            ExitAction::Power(event) => StopReason::Power(event),
            ExitAction::CpuShutdown => StopReason::CpuShutdown { at: at(vcpu) },
            ExitAction::InternalError => StopReason::Fault(self.internal_error(vcpu, start)),
            ExitAction::FailedEntry(reason) => StopReason::Fault(VcpuError::Entry { at: at(vcpu), reason }),
            ExitAction::MemoryFault => StopReason::Fault(VcpuError::Memory { at: at(vcpu) }),
            ExitAction::Unknown(exit) => StopReason::Fault(VcpuError::Exit { at: at(vcpu), exit }),
        })
    }

    /// Handles an error of KVM_RUN. A kick is no error.
    fn handle_run_error(
        &self,
        vcpu: &mut VcpuFd,
        errno: i32,
        start: &StartContext,
    ) -> Result<(), StopReason> {
        match errno {
            libc::EINTR | libc::EAGAIN => {
                RunPage::of(vcpu).clear_immediate_exit();
                if let Some(sampler) = self.shared.timeline.sampler() {
                    self.sample(vcpu, start, sampler);
                }
                Ok(())
            }
            libc::EFAULT => Err(StopReason::Fault(VcpuError::Memory {
                at: self.location(vcpu, start),
            })),
            _ => Err(StopReason::Fault(VcpuError::Run {
                at: self.location(vcpu, start),
                source: io::Error::from_raw_os_error(errno),
            })),
        }
    }

    #[inline(never)]
    fn location(&self, vcpu: &VcpuFd, start: &StartContext) -> Box<Location> {
        let (ip, bytes) = NativeCpu::instruction(vcpu, &start.memory);
        Box::new(Location {
            vcpu: self.id,
            ip,
            bytes,
            callers: NativeCpu::stack(vcpu, &start.memory, MAX_CALLERS)
                .map(|stack| stack.callers)
                .unwrap_or_default(),
            symbol: None,
            backtrace: None,
        })
    }

    /// Adds a sample of the guest to `sampler` if the timer of this thread has expired.
    #[inline(never)]
    fn sample(&self, vcpu: &VcpuFd, start: &StartContext, sampler: &Sampler) {
        let periods = take_periods();
        if periods == 0 {
            return;
        }
        let now = Instant::now();
        let stack = NativeCpu::stack(vcpu, &start.memory, MAX_ADDRESSES - 2).unwrap_or_default();
        let mut addresses = vec![stack.ip, stack.link.unwrap_or(0)];
        addresses.extend(stack.callers);
        if sampler.add(self.id, now, &addresses, periods) {
            let (ip, bytes) = NativeCpu::instruction(vcpu, &start.memory);
            sampler.add_instruction(SampledInstruction { ip, bytes });
        }
    }

    #[inline(never)]
    fn internal_error(&self, vcpu: &mut VcpuFd, start: &StartContext) -> VcpuError {
        let error = RunPage::of(vcpu).internal_error();
        let mut at = self.location(vcpu, start);
        if let Some((bytes, length)) = error.instruction {
            at.bytes = bytes[..length].to_vec();
        }
        let hint = match error.suberror {
            kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => Native::emulation_hint(),
            _ => "the image may need another boot protocol, or a host with hardware virtualisation",
        };
        VcpuError::Internal {
            suberror: error.suberror,
            at,
            hint,
        }
    }

    /// Waits at the gate. KVM completes the instruction of the last exit first, so that the state is consistent.
    fn park(&self, vcpu: &mut VcpuFd, start: &StartContext, is_first: &mut bool) -> Result<(), StopReason> {
        self.complete_exit(vcpu, start, is_first)?;
        if !NativeCpu::notify_pause(vcpu) {
            self.monitor.exits.count_clock_failure();
        }
        let mut reason = None;
        self.shared.gate.wait(ThreadSet::vcpu(self.id), || {
            if reason.is_none() {
                reason = self.handle_requests(vcpu, start).err();
            }
            if reason.is_some() {
                // A dropped request disconnects its reply: the vCPU has stopped.
                self.requests.try_iter().for_each(drop);
            }
        });
        reason.map_or(Ok(()), Err)
    }

    /// Calls KVM_RUN without entering the guest, so that KVM completes the last exit and fills in the run page.
    fn complete_exit(
        &self,
        vcpu: &mut VcpuFd,
        start: &StartContext,
        is_first: &mut bool,
    ) -> Result<(), StopReason> {
        loop {
            RunPage::of(vcpu).set_immediate_exit();
            self.enter_once(vcpu, start, is_first)?;
            // EINTR clears the flag; KVM returns it when nothing is left to complete.
            if !RunPage::of(vcpu).has_immediate_exit() {
                return Ok(());
            }
        }
    }

    fn handle_requests(&self, vcpu: &mut VcpuFd, start: &StartContext) -> Result<(), StopReason> {
        for request in self.requests.try_iter() {
            match request {
                ParkRequest::Flush => self.flush_pending(vcpu, start)?,
                ParkRequest::State { flushed, state } => self.send_state(vcpu, start, &flushed, &state)?,
                ParkRequest::Inspect(reply) => self.send_status(vcpu, &reply),
                ParkRequest::Call(call) => call(vcpu),
            }
        }
        Ok(())
    }

    /// Handles the requests of observers between two guest entries.
    #[inline(never)]
    fn handle_observers(
        &self,
        vcpu: &mut VcpuFd,
        start: &StartContext,
        is_first: &mut bool,
    ) -> Result<(), StopReason> {
        self.monitor.open_statistics(vcpu);
        if !self.monitor.requests.has_any() {
            return Ok(());
        }
        self.complete_exit(vcpu, start, is_first)?;
        // Before the channel is read: a later request sets it again.
        self.monitor.requests.take_inspection();
        self.handle_requests(vcpu, start)
    }

    #[inline(never)]
    fn send_status(&self, vcpu: &VcpuFd, reply: &Sender<CpuStatus>) {
        match NativeCpu::status(vcpu) {
            Ok(status) => {
                // Fails if the observer does not wait any longer.
                let _ = reply.send(status);
            }
            Err(error) => log::warn!("vCPU {}: cannot read the registers: {error}", self.id),
        }
        self.monitor.requests.end_inspection();
    }

    #[inline(never)]
    fn send_state(
        &self,
        vcpu: &mut VcpuFd,
        start: &StartContext,
        flushed: &Sender<()>,
        reply: &Sender<Result<NativeVcpuState, StateError>>,
    ) -> Result<(), StopReason> {
        let mut result = Ok(());
        let state = self.save(vcpu, &mut |vcpu| {
            if result.is_ok() {
                result = self.flush_pending(vcpu, start).map(|()| {
                    let _ = flushed.send(());
                });
            }
        });
        result?;
        let _ = reply.send(state);
        Ok(())
    }

    /// Reads the state of the vCPU as [`Cpu::save`] does. One copy for all kinds of `flush_pending`.
    #[inline(never)]
    fn save(
        &self,
        vcpu: &mut VcpuFd,
        flush_pending: &mut dyn FnMut(&mut VcpuFd),
    ) -> Result<NativeVcpuState, StateError> {
        NativeCpu::save(vcpu, &self.shared.kvm, flush_pending)
    }

    /// Flushes the work that KVM defers to guest entry, and handles the exits that it causes.
    #[inline(never)]
    fn flush_pending(&self, vcpu: &mut VcpuFd, start: &StartContext) -> Result<(), StopReason> {
        let result = run_until_entry(vcpu, |vcpu| {
            // A queued external interrupt is in no register yet: the first run only ends a halt, the second injects it.
            self.run_until_signal(vcpu, start)?;
            self.run_until_signal(vcpu, start)
        });
        result.unwrap_or_else(|error| {
            // The state then lacks only the pending work.
            log::warn!("vCPU {}: cannot flush pending work: {error}", self.id);
            Ok(())
        })
    }

    /// Calls KVM_RUN until it returns for the pending signal and for nothing else.
    fn run_until_signal(&self, vcpu: &mut VcpuFd, start: &StartContext) -> Result<(), StopReason> {
        for _ in 0..MAX_FLUSH_RUNS {
            let mut page = RunPage::of(vcpu);
            // Set by a kick that arrived at the gate; KVM_RUN would return before the pending work.
            page.clear_immediate_exit();
            NativeCpu::cancel_early_exits(&mut page);
            self.enter_once(vcpu, start, &mut false)?;
            if RunPage::of(vcpu).was_interrupted() {
                break;
            }
        }
        Ok(())
    }
}
