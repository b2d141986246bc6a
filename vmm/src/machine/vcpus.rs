//! The vCPUs of a machine and their threads, which are there before the VM is.

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Error, Machine};
use crate::config::VmSpec;
use crate::kvm::{self, Kick, install_kick};
use crate::timeline::Timeline;

use crate::vcpu::{PauseGate, StopReason, VcpuShared, VcpuThread};

/// Asks KVM whether a machine can have as many.
pub(super) fn limit_vcpus(kvm: &Kvm, spec: &VmSpec) -> Result<(), Error> {
    // One vCPU is always possible, and asking takes a call.
    if spec.vcpus() == 1 {
        return Ok(());
    }
    let limit = kvm.get_max_vcpus();
    if usize::from(spec.vcpus()) > limit {
        return Err(Error::Kvm(kvm::Error::Vcpus {
            asked: spec.vcpus(),
            limit,
        }));
    }
    Ok(())
}

impl Machine {
    /// As [`pause`](Self::pause), where that may take for ever.
    ///
    /// # Errors
    /// [`Error::Pause`] after `patience`; the guest then runs as before.
    pub(crate) fn pause_timeout(&self, patience: Duration) -> Result<(), Error> {
        let kick = || self.vcpus.iter().for_each(VcpuThread::kick);
        let paused = self.shared.gate.close_timeout(self.vcpus.len(), kick, patience);
        paused.then_some(()).ok_or(Error::Pause)
    }
}

/// The threads, what they share, and where they report.
pub(super) type Threads = (Vec<VcpuThread>, Arc<VcpuShared>, Receiver<StopReason>);

/// Starts a thread for each vCPU. `boot` kicks the first. With `restores` they will be given a saved state.
pub(super) fn start_threads(
    kvm: &Arc<Kvm>,
    spec: &VmSpec,
    boot: &Kick,
    timeline: &Arc<Timeline>,
    restores: bool,
) -> Result<Threads, Error> {
    let system = |operation| move |source| Error::System { operation, source };
    install_kick().map_err(system("install the handler of the signal that interrupts vCPUs"))?;
    let stop_event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(system("make an eventfd"))?;
    let (sender, reports) = mpsc::channel();
    let shared = Arc::new(VcpuShared {
        kvm: kvm.clone(),
        count: spec.vcpus(),
        timeline: timeline.clone(),
        reports: sender,
        stop_event,
        gate: PauseGate::default(),
        restores,
        profile: OnceLock::new(),
    });
    let vcpus = (0..spec.vcpus())
        .map(|id| {
            let kick = if id == 0 { boot.clone() } else { Kick::default() };
            VcpuThread::spawn(id, kick, shared.clone()).map_err(Error::Vcpu)
        })
        .collect::<Result<_, _>>()?;
    Ok((vcpus, shared, reports))
}

/// Makes the vCPUs, and hands each to its thread.
pub(super) fn create_vcpus(vm: &VmFd, threads: &[VcpuThread]) -> Result<(), kvm::Error> {
    for (id, thread) in (0..).zip(threads) {
        let vcpu = vm
            .create_vcpu(id)
            .map_err(kvm::failed(format!("KVM_CREATE_VCPU {id}")))?;
        thread.prepare(vcpu);
    }
    Ok(())
}
