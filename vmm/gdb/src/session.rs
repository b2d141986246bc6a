//! A session from attach to detach.

use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;

use crate::connection::{BufferedConnection, Stream};
use crate::debuggee::{Debuggee, PointKind, Stop, StopKind};
use crate::target::{GdbTarget, PACKET_SIZE, thread};

/// Bytes of one read from gdb.
const READ_SIZE: usize = 512;

/// End of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// gdb has detached or closed the connection: the VM goes on.
    Detached,
    /// gdb requests the end of the VM.
    Killed,
    /// The VM has ended.
    Ended,
}

/// Packet with the reply OK.
const KILLED: &[u8] = b"$OK#9a";

type StateMachine<'a> = GdbStubStateMachine<'static, GdbTarget<'a>, BufferedConnection<'a>>;

/// Serves gdb on `stream`, which does not block reads that [`Debuggee::wait`] announces. All vCPUs of `debuggee` are stopped.
///
/// A connection that breaks off, or violates the protocol, counts as detached. Breakpoints and the stop of the vCPUs stay: the caller
/// removes them.
pub fn serve(stream: &mut dyn Stream, debuggee: &mut dyn Debuggee) -> SessionEnd {
    let mut target = GdbTarget::new(debuggee);
    let builder = GdbStub::builder(BufferedConnection::new(stream)).packet_buffer_size(PACKET_SIZE);
    let Ok(stub) = builder.build() else {
        return SessionEnd::Detached;
    };
    let Ok(mut machine) = stub.run_state_machine(&mut target) else {
        return SessionEnd::Detached;
    };
    loop {
        machine = match advance(machine, &mut target) {
            Ok(next) => next,
            Err(end) => return end,
        };
    }
}

/// Performs one step of a session.
///
/// # Errors
/// The end of the session.
fn advance<'a>(
    machine: StateMachine<'a>,
    target: &mut GdbTarget<'a>,
) -> Result<StateMachine<'a>, SessionEnd> {
    // All errors are those of the connection: the target reports none as fatal.
    let lost = |_| SessionEnd::Detached;
    match machine {
        GdbStubStateMachine::Idle(_) if target.debuggee.has_ended() => Err(SessionEnd::Ended),
        GdbStubStateMachine::Idle(mut idle) => {
            let mut bytes = [0; READ_SIZE];
            let count = read(target, idle.borrow_conn(), &mut bytes)?;
            feed(idle.into(), target, &bytes[..count])
        }
        GdbStubStateMachine::Running(mut running) => {
            if let Some(stop) = target.debuggee.take_stop() {
                return running.report_stop(target, stop_reason(stop)).map_err(lost);
            }
            let mut bytes = [0; READ_SIZE];
            let count = read(target, running.borrow_conn(), &mut bytes)?;
            feed(running.into(), target, &bytes[..count])
        }
        GdbStubStateMachine::CtrlCInterrupt(interrupted) => {
            target.debuggee.interrupt();
            // A breakpoint that a vCPU has reached meanwhile comes first.
            let reason = target.debuggee.take_stop().map(stop_reason);
            let reason = reason.unwrap_or(MultiThreadStopReason::SignalWithThread {
                tid: thread(0),
                signal: Signal::SIGINT,
            });
            interrupted.interrupt_handled(target, Some(reason)).map_err(lost)
        }
        GdbStubStateMachine::Disconnected(mut disconnected) => Err(match disconnected.get_reason() {
            DisconnectReason::Disconnect => SessionEnd::Detached,
            DisconnectReason::Kill => {
                let connection = disconnected.borrow_conn();
                // gdb waits for a reply to vKill, which the crate does not send. It may not read it after an older packet.
                let _ = connection.write_all(KILLED).and_then(|()| connection.flush());
                SessionEnd::Killed
            }
            DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_) => SessionEnd::Ended,
        }),
    }
}

/// Waits for bytes of gdb or a change of the VM. Returns the number of bytes, 0 for a change.
///
/// # Errors
/// The end of the session.
fn read(
    target: &mut GdbTarget<'_>,
    connection: &mut BufferedConnection<'_>,
    bytes: &mut [u8],
) -> Result<usize, SessionEnd> {
    if !target.debuggee.wait() {
        return Ok(0);
    }
    match connection.read(bytes) {
        Ok(0) | Err(_) => Err(SessionEnd::Detached),
        Ok(count) => Ok(count),
    }
}

/// Passes `bytes` of gdb to the state machine.
///
/// # Errors
/// The end of the session.
fn feed<'a>(
    mut machine: StateMachine<'a>,
    target: &mut GdbTarget<'a>,
    bytes: &[u8],
) -> Result<StateMachine<'a>, SessionEnd> {
    for byte in bytes {
        machine = match machine {
            GdbStubStateMachine::Idle(idle) => idle.incoming_data(target, *byte),
            GdbStubStateMachine::Running(running) => running.incoming_data(target, *byte),
            // An interrupt within a batch of bytes is handled before the bytes that follow it.
            other => {
                let next = advance(other, target)?;
                feed(next, target, &[*byte]).map(Ok)?
            }
        }
        .map_err(|_| SessionEnd::Detached)?;
    }
    Ok(machine)
}

/// Converts a stop of the VM.
fn stop_reason(stop: Stop) -> MultiThreadStopReason<u64> {
    let (vcpu, kind) = match stop {
        Stop::Vcpu(vcpu, kind) => (thread(vcpu), kind),
        Stop::Exited(status) => return MultiThreadStopReason::Exited(status),
    };
    let signal = |signal| MultiThreadStopReason::SignalWithThread { tid: vcpu, signal };
    match kind {
        StopKind::Step => signal(Signal::SIGTRAP),
        StopKind::Crash => signal(Signal::SIGSEGV),
        StopKind::SoftwareBreakpoint => MultiThreadStopReason::SwBreak(vcpu),
        StopKind::HardwareBreakpoint => MultiThreadStopReason::HwBreak(vcpu),
        StopKind::Watchpoint(kind, address) => MultiThreadStopReason::Watch {
            tid: vcpu,
            kind: match kind {
                PointKind::Read => WatchKind::Read,
                PointKind::Access => WatchKind::ReadWrite,
                _ => WatchKind::Write,
            },
            addr: address,
        },
    }
}
