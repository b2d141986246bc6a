//! I/O ports: exits for accesses to them.

use devices::Bus;
use kvm_ioctls::VcpuExit;

use crate::arch::{IoAccess, NativeExit};
use crate::kvm::RunPage;

/// Width of the last port access in bytes. A string instruction transfers several units of this width in one exit.
pub struct PortWidth(*const u8);

impl PortWidth {
    /// Returns a pointer to the width in `page`, which stays usable while the exit is borrowed.
    pub fn of(page: &mut RunPage<'_>) -> Self {
        // SAFETY: the field is within a live kvm_run; the expression creates no reference.
        Self(unsafe { &raw const page.0.__bindgen_anon_1.io.size })
    }

    /// Returns the width, at least 1. The value has a meaning only after an exit for a port access.
    fn get(&self) -> usize {
        // SAFETY: the pointer is to a mapped byte: the vCPU, and so the page, outlives the handling of its exit. Every value of the
        // byte is valid, and no write races: the kernel writes only during KVM_RUN, on this same thread.
        usize::from(unsafe { self.0.read_volatile() }).max(1)
    }
}

/// Handles `exit` if it is an access to a port; `ports` are the devices.
pub fn handle<'a>(ports: &Bus, exit: VcpuExit<'a>, width: &PortWidth) -> NativeExit<'a> {
    match exit {
        VcpuExit::IoOut(port, data) => NativeExit::Io(write(ports, port, data, width.get())),
        VcpuExit::IoIn(port, data) => NativeExit::Io(read(ports, port, data, width.get())),
        other => NativeExit::Unknown(other),
    }
}

/// Writes the units of `data` to `port`.
fn write(ports: &Bus, port: u16, data: &[u8], width: usize) -> IoAccess {
    let mut unclaimed = 0;
    for unit in data.chunks(width) {
        unclaimed += u64::from(!ports.write(port.into(), unit));
    }
    IoAccess {
        address: port.into(),
        width,
        is_write: true,
        unclaimed,
    }
}

/// Reads the units of `data` from `port`.
fn read(ports: &Bus, port: u16, data: &mut [u8], width: usize) -> IoAccess {
    let mut unclaimed = 0;
    for unit in data.chunks_mut(width) {
        unclaimed += u64::from(!ports.read(port.into(), unit));
    }
    IoAccess {
        address: port.into(),
        width,
        is_write: false,
        unclaimed,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use devices::{Bus, BusBuilder, BusDevice};
    use kvm_bindings::kvm_run;
    use kvm_ioctls::VcpuExit;

    use super::{PortWidth, handle};
    use crate::arch::{IoAccess, NativeExit};
    use crate::kvm::RunPage;

    #[derive(Default)]
    struct Log(Vec<Vec<u8>>);

    impl BusDevice for Log {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            data.fill(u8::try_from(self.0.len()).unwrap());
            self.0.push(data.to_vec());
        }

        fn write(&mut self, _: u64, data: &[u8]) {
            self.0.push(data.to_vec());
        }
    }

    /// Returns ports with a logging device at 0x10.
    fn ports() -> (Bus, Arc<Mutex<Log>>) {
        let log = Arc::new(Mutex::new(Log::default()));
        let mut ports = BusBuilder::new();
        ports.claim("log", 0x10, 8, log.clone()).unwrap();
        (ports.build(), log)
    }

    /// Handles `exit` with units of 2 bytes.
    fn access(ports: &Bus, exit: VcpuExit<'_>) -> IoAccess {
        let mut page = kvm_run::default();
        page.__bindgen_anon_1.io.size = 2;
        match handle(ports, exit, &PortWidth::of(&mut RunPage(&mut page))) {
            NativeExit::Io(access) => access,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn string_instruction_is_split_by_width() {
        let (ports, log) = ports();
        let write = access(&ports, VcpuExit::IoOut(0x10, &[1, 2, 3, 4]));
        let mut data = [0; 4];
        let read = access(&ports, VcpuExit::IoIn(0x10, &mut data));
        assert_eq!(data, [2, 2, 3, 3]);
        assert_eq!(devices::lock(&log).0[..2], [vec![1, 2], vec![3, 4]]);
        assert!(write.is_write && !read.is_write);
        assert_eq!((write.unclaimed, read.unclaimed), (0, 0));
    }

    #[test]
    fn unclaimed_units_are_counted() {
        let (ports, _) = ports();
        let write = access(&ports, VcpuExit::IoOut(0x18, &[0; 4]));
        assert_eq!((write.address, write.width, write.unclaimed), (0x18, 2, 2));
        let read = access(&ports, VcpuExit::IoIn(0x18, &mut [0; 2]));
        assert_eq!((read.address, read.width, read.unclaimed), (0x18, 2, 1));
        assert_eq!(ports.unclaimed(), 3);
    }
}
