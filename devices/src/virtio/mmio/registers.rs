//! Register offsets and values, virtio 1.2 §4.2.2.
//!
//! All registers are 32 bits wide and little-endian. A driver uses aligned 32-bit accesses, except to the
//! configuration space.

/// Bytes of the MMIO range of a device.
pub const REGISTERS_LENGTH: u64 = 0x1000;

/// MagicValue: reads as [`MAGIC`].
pub const MAGIC_VALUE: u64 = 0x000;
/// Version: reads as [`VERSION_2`].
pub const VERSION: u64 = 0x004;
/// DeviceID: device type, virtio 1.2 §5.
pub const DEVICE_ID: u64 = 0x008;
/// VendorID: reads as [`VENDOR`].
pub const VENDOR_ID: u64 = 0x00c;
/// DeviceFeatures: 32 bits of the offered features.
pub const DEVICE_FEATURES: u64 = 0x010;
/// DeviceFeaturesSel: half that DeviceFeatures shows.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// DriverFeatures: 32 bits of the features that the driver accepts.
pub const DRIVER_FEATURES: u64 = 0x020;
/// DriverFeaturesSel: half that DriverFeatures sets.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// QueueSel: queue that the queue registers select.
pub const QUEUE_SEL: u64 = 0x030;
/// QueueNumMax: maximum queue size, or 0 if the queue does not exist.
pub const QUEUE_NUM_MAX: u64 = 0x034;
/// QueueNum: queue size.
pub const QUEUE_NUM: u64 = 0x038;
/// QueueReady: 1 if the device may use the queue.
pub const QUEUE_READY: u64 = 0x044;
/// QueueNotify: available buffer notification for the written queue index.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// InterruptStatus: pending causes of the interrupt.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// InterruptACK: causes that the driver has handled.
pub const INTERRUPT_ACK: u64 = 0x064;
/// Status: device status, virtio 1.2 §2.1.
pub const STATUS: u64 = 0x070;
/// QueueDescLow: address of the descriptor table.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// QueueDescHigh: upper half of that address.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// QueueDriverLow: address of the available ring.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// QueueDriverHigh: upper half of that address.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// QueueDeviceLow: address of the used ring.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// QueueDeviceHigh: upper half of that address.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// SHMLenLow: length of the selected shared memory region; all ones, since no device has one.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// SHMLenHigh: upper half of that length.
pub const SHM_LEN_HIGH: u64 = 0x0b4;
/// SHMBaseLow: address of that region; all ones.
pub const SHM_BASE_LOW: u64 = 0x0b8;
/// SHMBaseHigh: upper half of that address.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// ConfigGeneration: changes with the configuration space.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// Start of the configuration space, which ends with the MMIO range.
pub const CONFIG: u64 = 0x100;

/// Value of MagicValue: "virt".
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// Value of Version: the non-legacy interface.
pub const VERSION_2: u32 = 2;
/// Value of VendorID: "MAYF".
pub const VENDOR: u32 = u32::from_le_bytes(*b"MAYF");

/// Status: the driver has found the device.
pub const ACKNOWLEDGE: u32 = 1;
/// Status: the driver supports the device.
pub const DRIVER: u32 = 2;
/// Status: the driver is ready; the device is active.
pub const DRIVER_OK: u32 = 4;
/// Status: features are negotiated.
pub const FEATURES_OK: u32 = 8;
/// Status: the device has stopped until its reset.
pub const DEVICE_NEEDS_RESET: u32 = 64;
/// Status: the driver has given up.
pub const FAILED: u32 = 128;
