//! The VM for the server of gdb's protocol.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use gdb::{Action, Debuggee, PointKind, Stop, StopKind};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::context::{Context, Order};
use super::listener::Connection;
use super::monitor;
use super::points::{PointMemory, Points};
use crate::arch::{
    Cpu, DebugAbilities, DebugControl, DebugCpu, DebugExit, Native, Platform, StepMode, TRANSLATION_UNIT,
    register_range, target_description,
};
use crate::machine::Machine;
use crate::memory::try_read;
use crate::vcpu::{DebugStop, ThreadSet};

type NativeCpu = <Native as Platform>::Cpu;

const WAKE: u64 = 0;
const CONNECTION: u64 = 1;

/// VM with an attached debugger.
pub struct VmDebuggee<'a> {
    context: &'a Context,
    machine: &'a Machine,
    abilities: DebugAbilities,
    epoll: Epoll,
    description: String,
    points: Points,
    /// Points in debug registers at the last resume, by whose numbers exits name them.
    resumed: Vec<(PointKind, u64)>,
    /// Actions of the last resume.
    actions: Vec<Action>,
    /// Stops that gdb has not got.
    stops: VecDeque<(u8, DebugStop)>,
    /// The vCPU of the last stop or access: packets for points name no thread.
    selected: usize,
    /// gdb has resumed the VM, and has not interrupted it.
    is_running: bool,
    /// Exit status, once the VM has ended.
    ended: Option<u8>,
}

impl<'a> VmDebuggee<'a> {
    /// Stops all vCPUs. Returns the threads that do not stop as inner error; they run on then.
    ///
    /// # Errors
    /// Fails if a descriptor cannot be created.
    pub fn attach(
        context: &'a Context,
        connection: &Connection,
        abilities: DebugAbilities,
    ) -> io::Result<Result<Self, ThreadSet>> {
        let machine = context.shared.core.machine();
        let epoll = Epoll::new()?;
        for (file, data) in [
            (context.shared.wake.as_raw_fd(), WAKE),
            (connection.as_raw_fd(), CONNECTION),
        ] {
            epoll.ctl(ControlOperation::Add, file, EpollEvent::new(EventSet::IN, data))?;
        }
        let waiting = machine.hold_vcpus();
        if waiting != ThreadSet::default() {
            return Ok(Err(waiting));
        }
        let limits = machine.call_vcpu(0, NativeCpu::point_limits);
        let mut limits = limits.unwrap_or_default();
        if !abilities.has_hardware_breakpoints {
            limits.breakpoints = 0;
        }
        let mut debuggee = Self {
            context,
            machine,
            abilities,
            epoll,
            description: target_description::<NativeCpu>(),
            points: Points::new(limits, !abilities.has_software_breakpoints),
            resumed: Vec::new(),
            actions: Vec::new(),
            stops: VecDeque::new(),
            selected: 0,
            is_running: false,
            ended: None,
        };
        // The eventfd was read for the order to attach; that to end may have come with it.
        debuggee.receive_orders();
        // A crash before the attach is the first stop.
        debuggee.collect_stops();
        Ok(Ok(debuggee))
    }

    /// Removes all breakpoints and watchpoints. The caller releases the vCPUs.
    pub fn detach(&mut self) {
        if self.ended.is_some() {
            return;
        }
        // The connection may have broken off while the guest ran.
        let _ = self.machine.hold_vcpus();
        self.clear_points();
        for vcpu in 0..self.vcpus() {
            self.set_debug(vcpu, DebugControl::default());
        }
        // Stops that gdb has not got: a breakpoint that is gone has no effect.
        self.collect_stops();
    }

    fn clear_points(&mut self) {
        let mut points = std::mem::take(&mut self.points);
        points.clear(self);
        self.points = points;
    }

    fn set_debug(&self, vcpu: usize, control: DebugControl) -> bool {
        let set = self
            .machine
            .call_vcpu(vcpu, move |vcpu| NativeCpu::set_debug(vcpu, &control));
        match set {
            Some(Err(error)) => {
                log::warn!("vCPU {vcpu}: cannot set the breakpoints: {error}");
                false
            }
            Some(Ok(())) => true,
            None => false,
        }
    }

    /// Moves the stops of the vCPUs to those that gdb has not got.
    fn collect_stops(&mut self) {
        while let Some(stop) = self.machine.take_debug_stop() {
            self.stops.push_back(stop);
        }
    }

    fn instruction_pointer(&self, vcpu: usize) -> Option<u64> {
        let registers = self.machine.call_vcpu(vcpu, NativeCpu::registers)?;
        registers.ok().map(|bytes| NativeCpu::instruction_pointer(&bytes))
    }

    /// Returns the guest-physical address of an address of `vcpu`.
    fn translate(&self, vcpu: usize, address: u64) -> Option<u64> {
        let paging = self.machine.call_vcpu(vcpu, NativeCpu::paging)?.ok()?;
        NativeCpu::translate(&paging, self.machine.memory(), address)
    }

    /// Calls `access` with the guest-physical address and the part of the bytes for each page. Returns the number of bytes before the
    /// first failure.
    fn for_pages(
        &self,
        vcpu: usize,
        address: u64,
        length: usize,
        mut access: impl FnMut(u64, Range<usize>) -> bool,
    ) -> usize {
        let Some(Ok(paging)) = self.machine.call_vcpu(vcpu, NativeCpu::paging) else {
            return 0;
        };
        let mut done = 0;
        while done < length {
            let start = address.wrapping_add(done as u64);
            let rest = TRANSLATION_UNIT - start % TRANSLATION_UNIT;
            let end = length.min(done + usize::try_from(rest).unwrap_or(length));
            let physical = NativeCpu::translate(&paging, self.machine.memory(), start);
            if !physical.is_some_and(|physical| access(physical, done..end)) {
                break;
            }
            done = end;
        }
        done
    }

    /// Returns the reason of `exit` for gdb. `None` if the vCPU goes on without a report.
    fn stop_kind(&self, vcpu: usize, exit: DebugExit) -> Option<StopKind> {
        let ip = || self.instruction_pointer(vcpu);
        let at_breakpoint = || self.points.breakpoint_at(ip()?);
        Some(match exit {
            DebugExit::Step => return self.step_kind(vcpu),
            DebugExit::Software(operand) => match at_breakpoint() {
                Some(_) => StopKind::SoftwareBreakpoint,
                // Reached by another linear address.
                None if self.is_at_memory_breakpoint(vcpu) => StopKind::SoftwareBreakpoint,
                // An instruction of the guest.
                None if self.pass_to_guest(vcpu, operand) => return None,
                None => StopKind::Step,
            },
            DebugExit::Hardware => match at_breakpoint() {
                Some(PointKind::Software) => StopKind::SoftwareBreakpoint,
                _ => StopKind::HardwareBreakpoint,
            },
            DebugExit::WatchIndex(index) => match self.resumed.get(index) {
                Some((kind, address)) => StopKind::Watchpoint(*kind, *address),
                None => StopKind::Step,
            },
            DebugExit::WatchAddress(address) => match self.points.watchpoint_near(address) {
                Some((kind, address)) => StopKind::Watchpoint(kind, address),
                None => StopKind::Step,
            },
        })
    }

    /// Returns true if the next instruction of `vcpu` is a breakpoint in memory, at any linear address.
    fn is_at_memory_breakpoint(&self, vcpu: usize) -> bool {
        let ip = self.instruction_pointer(vcpu);
        let physical = ip.and_then(|ip| self.translate(vcpu, ip));
        physical.is_some_and(|physical| self.machine.has_breakpoint(physical))
    }

    /// Returns the reason of a stop after a step for gdb. `None` if the vCPU goes on.
    fn step_kind(&self, vcpu: usize) -> Option<StopKind> {
        let ip = self.instruction_pointer(vcpu);
        if let Some(ip) = ip
            && let Some(kind) = self.points.stepped_at(ip)
        {
            return Some(match kind {
                PointKind::Hardware => StopKind::HardwareBreakpoint,
                _ => StopKind::SoftwareBreakpoint,
            });
        }
        match self.actions.get(vcpu) {
            Some(Action::StepWithin(start, end)) if ip.is_some_and(|ip| (*start..*end).contains(&ip)) => None,
            Some(Action::Step | Action::StepWithin(..)) => Some(StopKind::Step),
            // The vCPU runs by steps.
            _ => None,
        }
    }

    /// Passes the exception of the breakpoint instruction with `operand` to the guest. Returns false if KVM cannot.
    fn pass_to_guest(&self, vcpu: usize, operand: u16) -> bool {
        let control = self.control(vcpu);
        let passed = self.machine.call_vcpu(vcpu, move |vcpu| {
            NativeCpu::pass_breakpoint(vcpu, &control, operand)
        });
        matches!(passed, Some(Ok(())))
    }

    /// Returns the settings of `vcpu` for the present points and its last action.
    fn control(&self, vcpu: usize) -> DebugControl {
        DebugControl {
            is_enabled: true,
            has_software: self.points.has_software(),
            step: match self.actions.get(vcpu) {
                Some(Action::Step | Action::StepWithin(..)) => StepMode::WithoutInterrupts,
                _ if self.points.has_stepped() => StepMode::WithInterrupts,
                _ => StepMode::Off,
            },
            points: self.points.hardware(),
        }
    }

    /// Stops all vCPUs.
    fn hold(&self) {
        let waiting = self.machine.hold_vcpus();
        if waiting != ThreadSet::default() {
            log::warn!("a thread does not stop for the debugger ({waiting})");
        }
    }

    /// Releases the vCPUs that the last actions do not hold.
    fn release(&self) {
        let is_held =
            |(vcpu, action): (u8, &Action)| (*action == Action::Hold).then_some(ThreadSet::vcpu(vcpu));
        let held = (0..).zip(&self.actions).filter_map(is_held);
        self.machine
            .release_vcpus(held.fold(ThreadSet::default(), ThreadSet::and));
    }

    fn receive_orders(&mut self) {
        while let Ok(order) = self.context.orders.try_receive() {
            if let Order::End(status) = order {
                self.ended = Some(status);
            }
        }
    }
}

impl PointMemory for VmDebuggee<'_> {
    fn add(&mut self, address: u64) -> Option<u64> {
        if !self.abilities.has_software_breakpoints {
            return None;
        }
        // The tables of a vCPU may lack the address, for example before the vCPU starts.
        let mut vcpus = std::iter::once(self.selected).chain(0..self.vcpus());
        let physical = vcpus.find_map(|vcpu| self.translate(vcpu, address))?;
        self.machine.add_breakpoint(physical).then_some(physical)
    }

    fn remove(&mut self, physical: u64) {
        self.machine.remove_breakpoint(physical);
    }
}

impl Debuggee for VmDebuggee<'_> {
    fn vcpus(&self) -> usize {
        self.machine.vcpus().len()
    }

    fn describe(&self, vcpu: usize) -> String {
        let state = match self.machine.call_vcpu(vcpu, NativeCpu::status) {
            Some(Ok(status)) if !status.is_started => "not started",
            Some(Ok(status)) if status.is_halted => "halted",
            Some(Ok(_)) => "running",
            Some(Err(_)) | None => "ended",
        };
        format!("vCPU {vcpu}, {state}")
    }

    fn target_description(&self) -> &str {
        &self.description
    }

    fn register_range(&self, number: usize) -> Option<Range<usize>> {
        register_range::<NativeCpu>(number)
    }

    fn registers(&mut self, vcpu: usize) -> Option<Vec<u8>> {
        self.selected = vcpu;
        self.machine.call_vcpu(vcpu, NativeCpu::registers)?.ok()
    }

    fn set_registers(&mut self, vcpu: usize, bytes: &[u8]) -> bool {
        let bytes = bytes.to_vec();
        let set = self
            .machine
            .call_vcpu(vcpu, move |vcpu| NativeCpu::set_registers(vcpu, &bytes));
        matches!(set, Some(Ok(())))
    }

    fn read_memory(&mut self, vcpu: usize, address: u64, bytes: &mut [u8]) -> usize {
        self.selected = vcpu;
        let memory = self.machine.memory();
        self.for_pages(vcpu, address, bytes.len(), |physical, part| {
            let length = part.len();
            let part = &mut bytes[part];
            let is_read = try_read(memory, GuestAddress(physical), part) == length;
            self.machine.hide_breakpoints(physical, part);
            is_read
        })
    }

    fn write_memory(&mut self, vcpu: usize, address: u64, bytes: &[u8]) -> bool {
        let memory = self.machine.memory();
        // A page of a truncated file is not there: a write to it would end the process.
        let exists = self.for_pages(vcpu, address, bytes.len(), |physical, part| {
            let is_last = memory.check_range(GuestAddress(physical), part.len());
            is_last && try_read(memory, GuestAddress(physical), &mut [0]) == 1
        });
        exists == bytes.len()
            && self.for_pages(vcpu, address, bytes.len(), |physical, part| {
                self.machine.write_for_debugger(physical, &bytes[part])
            }) == bytes.len()
    }

    fn has_watchpoints(&self) -> bool {
        self.abilities.has_watchpoints
    }

    fn add_point(&mut self, kind: PointKind, address: u64, length: u64) -> bool {
        let mut points = std::mem::take(&mut self.points);
        let is_added = points.add((kind, address, length), self);
        self.points = points;
        is_added
    }

    fn remove_point(&mut self, kind: PointKind, address: u64, length: u64) -> bool {
        let mut points = std::mem::take(&mut self.points);
        let is_removed = points.remove((kind, address, length), self);
        self.points = points;
        is_removed
    }

    fn resume(&mut self, actions: &[Action]) {
        self.actions = actions.to_vec();
        self.is_running = true;
        // A vCPU that has reached a breakpoint reaches it again. Other stops would be lost.
        self.collect_stops();
        self.stops.retain(|(_, stop)| {
            matches!(
                stop,
                DebugStop::Crash(_) | DebugStop::Exit(DebugExit::WatchIndex(_) | DebugExit::WatchAddress(_))
            )
        });
        if !self.stops.is_empty() {
            return;
        }
        let hardware = self.points.hardware();
        self.resumed = hardware.iter().map(|point| (point.kind, point.address)).collect();
        for vcpu in 0..self.vcpus() {
            if self
                .actions
                .get(vcpu)
                .is_some_and(|action| *action != Action::Hold)
            {
                self.set_debug(vcpu, self.control(vcpu));
            }
        }
        self.release();
    }

    fn interrupt(&mut self) {
        self.is_running = false;
        self.hold();
    }

    fn take_stop(&mut self) -> Option<Stop> {
        self.receive_orders();
        if let Some(status) = self.ended {
            return Some(Stop::Exited(status));
        }
        loop {
            if self.stops.is_empty() {
                self.collect_stops();
            }
            let (id, stop) = self.stops.pop_front()?;
            self.hold();
            self.collect_stops();
            let vcpu = usize::from(id);
            let kind = match stop {
                DebugStop::Crash(_) => Some(StopKind::Crash),
                DebugStop::Exit(exit) => self.stop_kind(vcpu, exit),
            };
            if let Some(kind) = kind {
                self.is_running = false;
                self.selected = vcpu;
                return Some(Stop::Vcpu(vcpu, kind));
            }
            if self.stops.is_empty() && self.is_running {
                self.release();
            }
        }
    }

    fn wait(&mut self) -> bool {
        let mut events = [EpollEvent::default(); 2];
        // After a signal the caller waits again.
        let count = self.epoll.wait(-1, &mut events).unwrap_or(0);
        let mut is_readable = false;
        for event in &events[..count] {
            match event.data() {
                WAKE => {
                    let _ = self.context.shared.wake.read();
                    self.receive_orders();
                }
                _ => is_readable = true,
            }
        }
        is_readable
    }

    fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    fn execute(&mut self, command: &str, output: &mut dyn fmt::Write) {
        monitor::execute(self.context, self.machine, command, output);
    }
}
