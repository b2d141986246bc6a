//! The VM for the crate gdbstub.

use std::convert::Infallible;
use std::num::NonZeroUsize;

use gdbstub::arch::{Arch, RegId, Registers};
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps, MultiThreadSingleStep,
    MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use crate::debuggee::{Action, Debuggee, PointKind};

/// Maximum length of a packet in bytes: all registers in hexadecimal digits, or 6 KiB of memory.
pub const PACKET_SIZE: usize = 12 << 10;
/// Maximum bytes of one read of memory. Without it, the reply to one packet could have any length.
const MAX_READ: usize = PACKET_SIZE / 2;

/// Returns gdb's thread of vCPU `vcpu`.
pub fn thread(vcpu: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu)
}

/// Returns the vCPU of `thread`.
fn vcpu(thread: Tid) -> usize {
    thread.get() - 1
}

/// Architecture whose registers are bytes in the order of the target description.
pub enum AnyArch {}

/// Registers of a vCPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegisterBytes(Vec<u8>);

/// Number of a register in the target description.
#[derive(Debug)]
pub struct RegisterNumber(usize);

impl Arch for AnyArch {
    type Usize = u64;
    type Registers = RegisterBytes;
    type BreakpointKind = usize;
    type RegId = RegisterNumber;
}

impl Registers for RegisterBytes {
    type ProgramCounter = u64;

    /// Returns 0: the position of the instruction pointer depends on the architecture, and the server does not need it.
    fn pc(&self) -> u64 {
        0
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|byte| write_byte(Some(*byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0 = bytes.to_vec();
        Ok(())
    }
}

impl RegId for RegisterNumber {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        Some((Self(id), None))
    }
}

/// Target of one session.
pub struct GdbTarget<'a> {
    pub debuggee: &'a mut dyn Debuggee,
    /// Actions of the next resume; `None` for those of `others`.
    actions: Vec<Option<Action>>,
    others: Action,
}

impl<'a> GdbTarget<'a> {
    pub fn new(debuggee: &'a mut dyn Debuggee) -> Self {
        Self {
            actions: Vec::new(),
            others: Action::Continue,
            debuggee,
        }
    }

    fn set_action(&mut self, thread: Tid, action: Action) {
        if let Some(place) = self.actions.get_mut(vcpu(thread)) {
            *place = Some(action);
        }
    }
}

/// Returns the error of a request that has no effect if `is_ok` is false.
fn accepted(is_ok: bool) -> TargetResult<(), GdbTarget<'static>> {
    match is_ok {
        true => Ok(()),
        false => Err(TargetError::NonFatal),
    }
}

impl Target for GdbTarget<'_> {
    type Arch = AnyArch;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, AnyArch, Infallible> {
        BaseOps::MultiThread(self)
    }

    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }

    fn use_lldb_register_info(&self) -> bool {
        false
    }
}

impl MultiThreadBase for GdbTarget<'_> {
    fn read_registers(&mut self, registers: &mut RegisterBytes, thread: Tid) -> TargetResult<(), Self> {
        let bytes = self.debuggee.registers(vcpu(thread));
        registers.0 = bytes.ok_or(TargetError::NonFatal)?;
        Ok(())
    }

    fn write_registers(&mut self, registers: &RegisterBytes, thread: Tid) -> TargetResult<(), Self> {
        accepted(self.debuggee.set_registers(vcpu(thread), &registers.0))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, address: u64, bytes: &mut [u8], thread: Tid) -> TargetResult<usize, Self> {
        // The first part of a longer read is longer, too. An error behind a part would be no error reply.
        if bytes.len() > MAX_READ {
            return Err(TargetError::NonFatal);
        }
        match self.debuggee.read_memory(vcpu(thread), address, bytes) {
            0 => Err(TargetError::NonFatal),
            count => Ok(count),
        }
    }

    fn write_addrs(&mut self, address: u64, bytes: &[u8], thread: Tid) -> TargetResult<(), Self> {
        accepted(self.debuggee.write_memory(vcpu(thread), address, bytes))
    }

    fn list_active_threads(&mut self, add: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        (0..self.debuggee.vcpus()).map(thread).for_each(add);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for GdbTarget<'_> {
    fn thread_extra_info(&self, thread: Tid, bytes: &mut [u8]) -> Result<usize, Infallible> {
        let text = self.debuggee.describe(vcpu(thread));
        let count = text.len().min(bytes.len());
        bytes[..count].copy_from_slice(&text.as_bytes()[..count]);
        Ok(count)
    }
}

impl SingleRegisterAccess<Tid> for GdbTarget<'_> {
    fn read_register(
        &mut self,
        thread: Tid,
        register: RegisterNumber,
        bytes: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let range = self.debuggee.register_range(register.0);
        let range = range.ok_or(TargetError::NonFatal)?;
        let all = self.debuggee.registers(vcpu(thread));
        let all = all.ok_or(TargetError::NonFatal)?;
        let value = all.get(range).ok_or(TargetError::NonFatal)?;
        let place = bytes.get_mut(..value.len()).ok_or(TargetError::NonFatal)?;
        place.copy_from_slice(value);
        Ok(value.len())
    }

    fn write_register(
        &mut self,
        thread: Tid,
        register: RegisterNumber,
        value: &[u8],
    ) -> TargetResult<(), Self> {
        let range = self.debuggee.register_range(register.0);
        let range = range.filter(|range| range.len() == value.len());
        let range = range.ok_or(TargetError::NonFatal)?;
        let all = self.debuggee.registers(vcpu(thread));
        let mut all = all.ok_or(TargetError::NonFatal)?;
        let place = all.get_mut(range).ok_or(TargetError::NonFatal)?;
        place.copy_from_slice(value);
        accepted(self.debuggee.set_registers(vcpu(thread), &all))
    }
}

impl MultiThreadResume for GdbTarget<'_> {
    fn resume(&mut self) -> Result<(), Infallible> {
        let others = self.others;
        let actions: Vec<_> = self
            .actions
            .iter()
            .map(|action| action.unwrap_or(others))
            .collect();
        self.debuggee.resume(&actions);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        self.actions = vec![None; self.debuggee.vcpus()];
        self.others = Action::Continue;
        Ok(())
    }

    // The signals of a guest are its own: gdb has none for it.
    fn set_resume_action_continue(&mut self, thread: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.set_action(thread, Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for GdbTarget<'_> {
    fn set_resume_action_step(&mut self, thread: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.set_action(thread, Action::Step);
        Ok(())
    }
}

impl MultiThreadRangeStepping for GdbTarget<'_> {
    fn set_resume_action_range_step(&mut self, thread: Tid, start: u64, end: u64) -> Result<(), Infallible> {
        self.set_action(thread, Action::StepWithin(start, end));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for GdbTarget<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        self.others = Action::Hold;
        Ok(())
    }
}

impl Breakpoints for GdbTarget<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        match self.debuggee.has_watchpoints() {
            true => Some(self),
            false => None,
        }
    }
}

impl SwBreakpoint for GdbTarget<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, length: usize) -> TargetResult<bool, Self> {
        Ok(self
            .debuggee
            .add_point(PointKind::Software, address, length as u64))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, length: usize) -> TargetResult<bool, Self> {
        Ok(self
            .debuggee
            .remove_point(PointKind::Software, address, length as u64))
    }
}

impl HwBreakpoint for GdbTarget<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, length: usize) -> TargetResult<bool, Self> {
        Ok(self
            .debuggee
            .add_point(PointKind::Hardware, address, length as u64))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, length: usize) -> TargetResult<bool, Self> {
        Ok(self
            .debuggee
            .remove_point(PointKind::Hardware, address, length as u64))
    }
}

/// Converts a kind of watchpoint.
fn point_kind(kind: WatchKind) -> PointKind {
    match kind {
        WatchKind::Write => PointKind::Write,
        WatchKind::Read => PointKind::Read,
        WatchKind::ReadWrite => PointKind::Access,
    }
}

impl HwWatchpoint for GdbTarget<'_> {
    fn add_hw_watchpoint(&mut self, address: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        Ok(self.debuggee.add_point(point_kind(kind), address, length))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.debuggee.remove_point(point_kind(kind), address, length))
    }
}

impl MonitorCmd for GdbTarget<'_> {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut output: ConsoleOutput<'_>,
    ) -> Result<(), Infallible> {
        match str::from_utf8(command) {
            Ok(command) => self.debuggee.execute(command.trim(), &mut output),
            Err(_) => output.write_raw(b"cannot execute the command: it is no UTF-8 text\n"),
        }
        Ok(())
    }
}

impl TargetDescriptionXmlOverride for GdbTarget<'_> {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        bytes: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::NonFatal);
        }
        let text = self.debuggee.target_description().as_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let count = (text.len() - start).min(length).min(bytes.len());
        bytes[..count].copy_from_slice(&text[start..start + count]);
        Ok(count)
    }
}
