//! A vCPU's thread while the VM is paused.

use std::sync::mpsc::{self, Receiver, Sender};

use kvm_ioctls::VcpuFd;
use snapshot::persist::Error as StateError;

use super::{NativeCpu, NativeVcpuState, Start, VcpuRunner};
use crate::arch::Cpu;
use crate::kvm::RunPage;
use crate::vcpu::StopReason;
use crate::vcpu::pass::run_until_entry;

/// How often a vCPU is brought up to the door of the guest before it counts as settled whatever it says: there are no more
/// vectors than that.
const PASSES: usize = 256;

/// What is asked of a vCPU's thread while it waits.
pub(super) enum ParkRequest {
    /// The vCPU's state.
    State {
        settled: Sender<()>,
        state: Sender<Result<NativeVcpuState, StateError>>,
    },
    /// To have KVM do what it has put off.
    Settling,
}

/// What a vCPU's thread answers to who asks for its vCPU's state. Both disconnect when it has ended.
pub struct StateReply {
    /// KVM has done what it had put off, which may write to guest memory. It comes again if there was more of that before the
    /// state was read, and never after the state.
    pub settled: Receiver<()>,
    /// The state.
    pub state: Receiver<Result<NativeVcpuState, StateError>>,
}

impl StateReply {
    pub(super) fn channels() -> (ParkRequest, Self) {
        let (settle, settled) = mpsc::channel();
        let (give, state) = mpsc::channel();
        let asked = ParkRequest::State {
            settled: settle,
            state: give,
        };
        (asked, Self { settled, state })
    }
}

impl VcpuRunner {
    /// Waits at the gate. The instruction that the last exit belongs to is completed before, so that the vCPU's state is whole.
    pub(super) fn park(&self, vcpu: &mut VcpuFd, start: &Start, first: &mut bool) -> Result<(), StopReason> {
        self.complete(vcpu, start, first)?;
        NativeCpu::notify_pause(vcpu);
        let mut ending = None;
        self.shared.gate.wait(|| {
            if ending.is_none() {
                ending = self.answer(vcpu, start).err();
            }
            if ending.is_some() {
                // Who is not answered knows that there is no such vCPU any more.
                self.asked.try_iter().for_each(drop);
            }
        });
        ending.map_or(Ok(()), Err)
    }

    /// Runs the vCPU up to the door of the guest, so that nothing of its last exit is left to do and the shared page says how
    /// the vCPU is.
    pub(super) fn complete(
        &self,
        vcpu: &mut VcpuFd,
        start: &Start,
        first: &mut bool,
    ) -> Result<(), StopReason> {
        loop {
            RunPage::of(vcpu).set_immediate_exit();
            self.enter_once(vcpu, start, first)?;
            // Cleared by the interruption, which comes when there is nothing more to complete.
            if !RunPage::of(vcpu).has_immediate_exit() {
                return Ok(());
            }
        }
    }

    /// Does what somebody has asked for.
    fn answer(&self, vcpu: &mut VcpuFd, start: &Start) -> Result<(), StopReason> {
        for asked in self.asked.try_iter() {
            match asked {
                ParkRequest::Settling => self.flush_pending(vcpu, start)?,
                ParkRequest::State { settled, state } => self.give_state(vcpu, start, &settled, &state)?,
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn give_state(
        &self,
        vcpu: &mut VcpuFd,
        start: &Start,
        settled: &Sender<()>,
        give: &Sender<Result<NativeVcpuState, StateError>>,
    ) -> Result<(), StopReason> {
        let mut ended = Ok(());
        let state = NativeCpu::save(vcpu, &self.shared.kvm, |vcpu| {
            if ended.is_ok() {
                ended = self.flush_pending(vcpu, start).map(|()| {
                    let _ = settled.send(());
                });
            }
        });
        ended?;
        let _ = give.send(state);
        Ok(())
    }

    /// Has KVM do all that it puts off until the vCPU enters the guest, and does what comes of it.
    #[inline(never)]
    fn flush_pending(&self, vcpu: &mut VcpuFd, start: &Start) -> Result<(), StopReason> {
        let passed = run_until_entry(vcpu, |vcpu| {
            // An interrupt that KVM was handed and that shows nowhere first ends a halt, and is injected only by the second
            // run.
            self.pass(vcpu, start)?;
            self.pass(vcpu, start)
        });
        passed.unwrap_or_else(|error| {
            // Only what KVM has put off is missing from the state then.
            log::warn!("vCPU {}: cannot be settled: {error}", self.id);
            Ok(())
        })
    }

    /// Runs the vCPU until KVM has nothing more to say before it looks at signals.
    fn pass(&self, vcpu: &mut VcpuFd, start: &Start) -> Result<(), StopReason> {
        for _ in 0..PASSES {
            let mut page = RunPage::of(vcpu);
            // A kick that has come while the vCPU was parked would have KVM_RUN return too early.
            page.clear_immediate_exit();
            // Would come before the signal, and again each time.
            page.request_interrupt_window(false);
            self.enter_once(vcpu, start, &mut false)?;
            if RunPage::of(vcpu).was_interrupted() {
                break;
            }
        }
        Ok(())
    }
}
