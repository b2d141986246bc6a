//! Activity of the guest of a machine, for a search of idle guests.

use std::os::fd::RawFd;
use std::time::Duration;

use devices::lock;
use devices::virtio::block::DiskHandle;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Machine;
use super::attachments::AttachedDevice;
use crate::vcpu::VcpuActivity;

/// Counters of the activity of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    /// Processor time of all vCPU threads.
    pub cpu: Duration,
    /// Frames that keep the VM awake.
    pub frames: u64,
    /// Ended drive requests.
    pub requests: u64,
    /// The guest has sent a frame, or announced that it is ready.
    pub is_ready: bool,
}

impl Machine {
    /// Begins to count frames, and prepares [`are_vcpus_halted`](Self::are_vcpus_halted).
    pub(crate) fn observe_activity(&self) {
        self.devices.iter().for_each(|device| device.count_frames(true));
        for vcpu in &self.vcpus {
            vcpu.prepare_observation();
        }
    }

    /// Ends the count of frames.
    pub(crate) fn ignore_activity(&self) {
        self.devices.iter().for_each(|device| device.count_frames(false));
    }

    /// Returns the counters of the activity. Takes no lock.
    pub(crate) fn activity(&self) -> Activity {
        let mut activity = Activity {
            cpu: self.vcpus.iter().filter_map(|vcpu| vcpu.cpu_time()).sum(),
            is_ready: self.power.is_ready(),
            ..Activity::default()
        };
        for device in &self.devices {
            let transfers = device.transfers();
            activity.frames = activity.frames.wrapping_add(transfers.frames);
            activity.requests = activity.requests.wrapping_add(transfers.requests);
            activity.is_ready |= transfers.has_sent;
        }
        activity
    }

    /// Returns true if each vCPU waits in a halt.
    pub(crate) fn are_vcpus_halted(&self) -> bool {
        let mut vcpus = self.vcpus.iter();
        vcpus.all(|vcpu| vcpu.observe(false, self.is_served()).activity == VcpuActivity::Halted)
    }

    /// Returns true while a device of this kind has work: a drive request in flight, or a received frame.
    pub(crate) fn has_work(&self, is_of_kind: impl Fn(&AttachedDevice) -> bool) -> bool {
        let mut devices = self.devices.iter().filter(|device| is_of_kind(device));
        devices.any(AttachedDevice::has_work)
    }

    /// Returns the descriptors that become readable with the next frame to the guest.
    pub(crate) fn wake_descriptors(&self) -> Vec<RawFd> {
        let devices = self.devices.iter();
        devices.filter_map(AttachedDevice::wake_descriptor).collect()
    }

    /// Returns true if a frame waits for the guest in the backend of an interface. If it cannot be found out, none does: the suspend
    /// watches the backends too.
    pub(crate) fn has_frame_in_backend(&self) -> bool {
        let descriptors = self.wake_descriptors();
        if descriptors.is_empty() {
            return false;
        }
        let Ok(epoll) = Epoll::new() else { return false };
        for descriptor in descriptors {
            // A failure leaves out this backend.
            let _ = epoll.ctl(
                ControlOperation::Add,
                descriptor,
                EpollEvent::new(EventSet::IN, 0),
            );
        }
        epoll
            .wait(0, &mut [EpollEvent::default()])
            .is_ok_and(|ready| ready > 0)
    }

    /// Returns true if a vCPU has stopped for good: the guest has ended.
    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.stop_reasons).has_message()
    }

    /// Returns the open disks.
    pub(crate) fn disks(&self) -> impl Iterator<Item = DiskHandle> {
        self.devices.iter().filter_map(AttachedDevice::disk)
    }

    /// Returns the open disks that no popped request may still change, with the IDs of their drives.
    pub(crate) fn settled_disks(&self) -> impl Iterator<Item = (&str, DiskHandle)> {
        let devices = self.devices.iter();
        devices.filter_map(|device| Some((device.id(), device.settled_disk()?)))
    }
}
