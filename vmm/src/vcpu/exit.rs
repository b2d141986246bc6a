//! What an exit from the guest asks for.

use devices::{Bus, Power};
use kvm_ioctls::VcpuExit;

use crate::kvm::run_page::PortWidth;

/// Where a guest's accesses go.
pub(crate) struct Targets<'a> {
    /// Ports.
    pub ports: &'a Bus,
    /// Memory-mapped registers.
    pub memory: &'a Bus,
    /// Where the guest says that it has ended.
    pub power: &'a Power,
}

/// What has to be done after an exit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExitAction {
    /// Enter the guest again.
    Handled,
    /// A local interrupt controller has seen the end of an interrupt.
    EndOfInterrupt(u8),
    /// The guest wants to end.
    Power(devices::PowerEvent),
    /// The processor shut down.
    TripleFault,
    /// KVM cannot emulate what the guest did.
    InternalError,
    /// The processor refused to enter the guest.
    EntryRefused(u64),
    /// Guest memory could not be reached.
    MemoryFault,
    /// None of those that this monitor has asked for.
    Unknown(String),
}

/// Carries `exit` out. `width` is that of the port access, if it is one: a string instruction moves several units at once.
pub(crate) fn handle(exit: VcpuExit<'_>, width: &PortWidth, targets: &Targets<'_>) -> ExitAction {
    match exit {
        VcpuExit::IoOut(port, data) => {
            data.chunks(width.get())
                .for_each(|unit| targets.ports.write(port.into(), unit));
            wish(targets.power)
        }
        VcpuExit::IoIn(port, data) => {
            data.chunks_mut(width.get())
                .for_each(|unit| targets.ports.read(port.into(), unit));
            ExitAction::Handled
        }
        VcpuExit::MmioRead(address, data) => {
            targets.memory.read(address, data);
            ExitAction::Handled
        }
        VcpuExit::MmioWrite(address, data) => {
            targets.memory.write(address, data);
            wish(targets.power)
        }
        // A halted vCPU waits in the kernel; the exits that it makes in between only want to be entered again.
        VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::Intr => ExitAction::Handled,
        VcpuExit::IoapicEoi(vector) => ExitAction::EndOfInterrupt(vector),
        VcpuExit::Shutdown => ExitAction::TripleFault,
        VcpuExit::InternalError => ExitAction::InternalError,
        VcpuExit::FailEntry(reason, _) => ExitAction::EntryRefused(reason),
        VcpuExit::MemoryFault { .. } => ExitAction::MemoryFault,
        other => ExitAction::Unknown(format!("{other:?}")),
    }
}

fn wish(power: &Power) -> ExitAction {
    power.requested().map_or(ExitAction::Handled, ExitAction::Power)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use devices::{Bus, BusBuilder, BusDevice, Power, PowerEvent};
    use kvm_ioctls::VcpuExit;

    use super::{ExitAction, PortWidth, Targets, handle};

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

    fn with(test: impl FnOnce(&Targets<'_>)) -> Vec<Vec<u8>> {
        let log = Arc::new(Mutex::new(Log::default()));
        let mut ports = BusBuilder::new();
        ports.claim("log", 0x10, 8, log.clone()).unwrap();
        let power = Power::new();
        test(&Targets {
            ports: &ports.build(),
            memory: &Bus::default(),
            power: &power,
        });
        devices::lock(&log).0.clone()
    }

    #[test]
    fn string_instructions_are_as_many_accesses() {
        let log = with(|targets| {
            let width = PortWidth::fixed(2);
            handle(VcpuExit::IoOut(0x10, &[1, 2, 3, 4]), &width, targets);
            let mut data = [0; 4];
            handle(VcpuExit::IoIn(0x10, &mut data), &width, targets);
            assert_eq!(data, [2, 2, 3, 3]);
        });
        assert_eq!(log[..2], [vec![1, 2], vec![3, 4]]);
    }

    #[test]
    fn a_wish_to_end_is_seen_after_the_write() {
        with(|targets| {
            let write = || handle(VcpuExit::IoOut(0x10, &[1]), &PortWidth::fixed(1), targets);
            assert_eq!(write(), ExitAction::Handled);
            targets.power.request(PowerEvent::Exit(3));
            assert_eq!(write(), ExitAction::Power(PowerEvent::Exit(3)));
        });
    }

    #[test]
    fn what_nobody_asked_for_is_named() {
        with(|targets| {
            let outcome = handle(VcpuExit::Nmi, &PortWidth::fixed(1), targets);
            assert_eq!(outcome, ExitAction::Unknown("Nmi".into()));
        });
    }
}
