//! Contract of a VM that gdb debugs.

use std::fmt;
use std::ops::Range;

/// Action of a vCPU at a resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The vCPU runs.
    Continue,
    /// The vCPU executes one instruction.
    Step,
    /// The vCPU executes instructions while its instruction pointer is in the range.
    StepWithin(u64, u64),
    /// The vCPU does not run.
    Hold,
}

/// Kind of a breakpoint or watchpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointKind {
    /// Breakpoint for which the VM may change guest memory.
    Software,
    /// Breakpoint in a debug register.
    Hardware,
    /// Watchpoint for writes.
    Write,
    /// Watchpoint for reads.
    Read,
    /// Watchpoint for reads and writes.
    Access,
}

/// Reason of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopKind {
    /// The vCPU has executed its instructions.
    Step,
    /// Breakpoint of [`PointKind::Software`].
    SoftwareBreakpoint,
    /// Breakpoint of [`PointKind::Hardware`].
    HardwareBreakpoint,
    /// Watchpoint of this kind, on an address.
    Watchpoint(PointKind, u64),
    /// The guest cannot handle an exception, or KVM cannot run it. It ends when it is resumed.
    Crash,
}

/// Stop of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A vCPU has stopped, and the others with it.
    Vcpu(usize, StopKind),
    /// The VM has ended with an exit status.
    Exited(u8),
}

/// VM that gdb debugs. All vCPUs are stopped except between [`resume`](Self::resume) and the next stop.
pub trait Debuggee {
    /// Returns the number of vCPUs.
    fn vcpus(&self) -> usize;

    /// Returns a short text on the state of `vcpu`.
    fn describe(&self, vcpu: usize) -> String;

    /// Returns the target description of gdb.
    fn target_description(&self) -> &str;

    /// Returns the bytes of the register `number` among those of [`registers`](Self::registers).
    fn register_range(&self, number: usize) -> Option<Range<usize>>;

    /// Reads all registers of `vcpu`, in the order of the target description. `None` if the vCPU has ended.
    fn registers(&mut self, vcpu: usize) -> Option<Vec<u8>>;

    /// Sets all registers of `vcpu`. Returns false if the vCPU does not accept them.
    fn set_registers(&mut self, vcpu: usize, bytes: &[u8]) -> bool;

    /// Reads memory at an address of `vcpu`. Returns the number of bytes that could be read.
    fn read_memory(&mut self, vcpu: usize, address: u64, bytes: &mut [u8]) -> usize;

    /// Writes memory at an address of `vcpu`. Returns false if a part of it does not exist; nothing is written then.
    fn write_memory(&mut self, vcpu: usize, address: u64, bytes: &[u8]) -> bool;

    /// Returns true if watchpoints of the hardware work.
    fn has_watchpoints(&self) -> bool;

    /// Adds a breakpoint or watchpoint. Returns false if there is no place for it.
    fn add_point(&mut self, kind: PointKind, address: u64, length: u64) -> bool;

    /// Removes a breakpoint or watchpoint. Returns false if there is none.
    fn remove_point(&mut self, kind: PointKind, address: u64, length: u64) -> bool;

    /// Resumes the vCPUs by `actions`, one for each.
    fn resume(&mut self, actions: &[Action]);

    /// Stops all vCPUs. Returns when they are stopped.
    fn interrupt(&mut self);

    /// Returns the next stop of the running VM, with all vCPUs stopped, without a wait.
    fn take_stop(&mut self) -> Option<Stop>;

    /// Waits until the connection is readable or the VM stops or ends. Returns true if the connection is readable, or false.
    fn wait(&mut self) -> bool;

    /// Returns true if the VM has ended, or must end without its debugger.
    fn has_ended(&self) -> bool;

    /// Executes a command of the user, and prints the result.
    fn execute(&mut self, command: &str, output: &mut dyn fmt::Write);
}
