//! Interrupt controller in the kernel: GICv3 or GICv2. KVM API, devices/arm-vgic-v3.rst and devices/arm-vgic.rst.

use std::sync::Arc;

use devices::Interrupt;
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V2_ADDR_TYPE_CPU,
    KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::gic_version::{self, Error};
use super::layout;
use crate::config::GicVersion;
use crate::kvm::{Error as KvmError, cause, failed};

/// The interrupt controller.
pub struct Gic {
    version: GicVersion,
    device: DeviceFd,
}

impl Gic {
    /// Creates the controller for `vcpus` vCPUs: the `requested` version, or the newest that the host supports. All vCPUs must be
    /// initialised, and none may have a call in progress: KVM returns EBUSY otherwise.
    ///
    /// # Errors
    /// [`Error`]
    pub fn new(vm: &VmFd, requested: Option<GicVersion>, vcpus: u8) -> Result<Self, Error> {
        let (version, device) = gic_version::choose(requested, vcpus, |version| create(vm, version))?;
        initialise(&device, version).map_err(Error::Kvm)?;
        Ok(Self { version, device })
    }

    /// Returns the version.
    pub fn version(&self) -> GicVersion {
        self.version
    }

    /// Returns the device.
    pub fn device(&self) -> &DeviceFd {
        &self.device
    }
}

/// Creates a controller of `version`. Returns `None` if the host does not support it.
fn create(vm: &VmFd, version: GicVersion) -> Result<Option<DeviceFd>, KvmError> {
    let type_ = match version {
        GicVersion::V2 => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
        GicVersion::V3 => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    };
    let mut device = kvm_create_device {
        type_,
        ..Default::default()
    };
    match vm.create_device(&mut device) {
        Ok(device) => Ok(Some(device)),
        Err(error) if error.errno() == libc::ENODEV => Ok(None),
        Err(error) => Err(failed(format!("KVM_CREATE_DEVICE of a {version}"))(error)),
    }
}

fn initialise(device: &DeviceFd, version: GicVersion) -> Result<(), KvmError> {
    let addresses = match version {
        GicVersion::V2 => [
            (KVM_VGIC_V2_ADDR_TYPE_DIST, layout::DISTRIBUTOR),
            (KVM_VGIC_V2_ADDR_TYPE_CPU, layout::CPU_INTERFACE),
        ],
        GicVersion::V3 => [
            (KVM_VGIC_V3_ADDR_TYPE_DIST, layout::DISTRIBUTOR),
            (KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::REDISTRIBUTORS),
        ],
    };
    for (kind, address) in addresses {
        set(device, KVM_DEV_ARM_VGIC_GRP_ADDR, kind, &address)?;
    }
    set(device, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &layout::INTERRUPTS)?;
    let init = kvm_device_attr {
        group: KVM_DEV_ARM_VGIC_GRP_CTRL,
        attr: KVM_DEV_ARM_VGIC_CTRL_INIT.into(),
        ..Default::default()
    };
    device
        .set_device_attr(&init)
        .map_err(failed("KVM_SET_DEVICE_ATTR of KVM_DEV_ARM_VGIC_CTRL_INIT"))
}

fn set<T>(device: &DeviceFd, group: u32, attr: u32, value: &T) -> Result<(), KvmError> {
    let attribute = kvm_device_attr {
        group,
        attr: attr.into(),
        addr: std::ptr::from_ref(value) as u64,
        flags: 0,
    };
    device
        .set_device_attr(&attribute)
        .map_err(failed(format!("KVM_SET_DEVICE_ATTR {attr} of group {group}")))
}

/// Shared interrupt as an interrupt line.
pub struct SharedLine {
    vm: Arc<VmFd>,
    number: u32,
}

impl SharedLine {
    /// Creates the line of shared interrupt `number`, counted from 0.
    pub fn new(vm: Arc<VmFd>, number: u32) -> Self {
        Self { vm, number }
    }
}

impl Interrupt for SharedLine {
    fn set_level(&self, asserted: bool) {
        let interrupt = layout::FIRST_SHARED_INTERRUPT + self.number;
        let line = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | interrupt;
        // Fails only for an interrupt that does not exist.
        if let Err(error) = self.vm.set_irq_line(line, asserted) {
            log::debug!(
                "cannot set interrupt {interrupt} to {asserted} with KVM_IRQ_LINE: {}",
                cause(error)
            );
        }
    }
}
