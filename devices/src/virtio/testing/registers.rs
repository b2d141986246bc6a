use crate::bus::BusDevice;

/// Reads the register at `offset`.
pub fn get(transport: &mut dyn BusDevice, offset: u64) -> u32 {
    let mut data = [0; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// Writes the register at `offset`.
pub fn set(transport: &mut dyn BusDevice, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}
