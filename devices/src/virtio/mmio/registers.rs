//! Offsets and values of the registers. Section 4.2.2 of the specification.
//!
//! All registers are 32 bits wide, little-endian, and a driver uses them by aligned accesses of 32 bits. Only the
//! configuration space takes other widths.

/// Bytes of the window.
pub const WINDOW: u64 = 0x1000;

/// MagicValue: reads as [`MAGIC`].
pub const MAGIC_VALUE: u64 = 0x000;
/// Version: reads as [`VERSION_2`].
pub const VERSION: u64 = 0x004;
/// DeviceID: what kind of device it is.
pub const DEVICE_ID: u64 = 0x008;
/// VendorID: reads as [`VENDOR`].
pub const VENDOR_ID: u64 = 0x00c;
/// DeviceFeatures: 32 of the bits that are offered.
pub const DEVICE_FEATURES: u64 = 0x010;
/// DeviceFeaturesSel: which 32.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// DriverFeatures: 32 of the bits that the driver accepts.
pub const DRIVER_FEATURES: u64 = 0x020;
/// DriverFeaturesSel: which 32.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// QueueSel: which queue the following registers are about.
pub const QUEUE_SEL: u64 = 0x030;
/// QueueNumMax: its largest size, or 0 if there is no such queue.
pub const QUEUE_NUM_MAX: u64 = 0x034;
/// QueueNum: its size.
pub const QUEUE_NUM: u64 = 0x038;
/// QueueReady: whether the device may use it.
pub const QUEUE_READY: u64 = 0x044;
/// QueueNotify: there is something in the queue of this number.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// InterruptStatus: what the interrupt is for.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// InterruptACK: what of it has been seen to.
pub const INTERRUPT_ACK: u64 = 0x064;
/// Status: how far the driver and the device are.
pub const STATUS: u64 = 0x070;
/// QueueDescLow: address of the descriptor table.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// QueueDescHigh: its upper half.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// QueueDriverLow: address of the available ring.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// QueueDriverHigh: its upper half.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// QueueDeviceLow: address of the used ring.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// QueueDeviceHigh: its upper half.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// SHMLenLow: length of the selected shared memory region; all ones when there is no such region, and there is none.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// SHMLenHigh: its upper half.
pub const SHM_LEN_HIGH: u64 = 0x0b4;
/// SHMBaseLow: address of that region; all ones likewise.
pub const SHM_BASE_LOW: u64 = 0x0b8;
/// SHMBaseHigh: its upper half.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// ConfigGeneration: another number whenever the configuration space has changed.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// Where the configuration space begins; it goes on to the end of the window.
pub const CONFIG: u64 = 0x100;

/// Value of MagicValue: "virt".
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// Value of Version: not the legacy interface.
pub const VERSION_2: u32 = 2;
/// Value of VendorID: "MAYF".
pub const VENDOR: u32 = u32::from_le_bytes(*b"MAYF");

/// Status: the driver has noticed the device.
pub const ACKNOWLEDGE: u32 = 1;
/// Status: the driver knows how to drive it.
pub const DRIVER: u32 = 2;
/// Status: the driver is ready, the device is live.
pub const DRIVER_OK: u32 = 4;
/// Status: both agree on the features.
pub const FEATURES_OK: u32 = 8;
/// Status: the device cannot go on.
pub const DEVICE_NEEDS_RESET: u32 = 64;
/// Status: the driver has given up.
pub const FAILED: u32 = 128;
