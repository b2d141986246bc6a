//! The state of a paused machine goes into another one, whose memory is a copy, and the guest goes on there.

use std::io::{PipeReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use devices::lock;
use devices::serial::Output;
use snapshot::{Reader, Writer};
use vm_memory::{Bytes, GuestAddress};
use vmm::arch::{Native, Platform};
use vmm::boot::Image;
use vmm::config::{Host, IrqchipMode, MemorySize, VmConfig, VmSpec};
use vmm::machine::state::Error;
use vmm::machine::{Devices, Machine};
use vmm::memory;
use vmm::timeline::Timeline;

use crate::guests::file;

/// Guest memory in MiB.
const MEMORY: u64 = 8;
/// Milliseconds after which a guest that prints nothing counts as dead.
const PATIENCE: i32 = 60_000;

/// A guest to be saved: its image, vCPUs, interrupt controllers.
#[derive(Clone, Copy)]
struct Guest {
    name: &'static str,
    vcpus: u32,
    irqchip: IrqchipMode,
}

impl Guest {
    const fn new(name: &'static str, irqchip: IrqchipMode) -> Self {
        Self {
            name,
            vcpus: 1,
            irqchip,
        }
    }

    fn spec(self) -> VmSpec {
        let mut config = VmConfig::new(file(self.name).into());
        config.memory = MemorySize::from_bytes(MEMORY << 20);
        config.vcpus = self.vcpus;
        config.irqchip = self.irqchip;
        config.check(&Host::this()).unwrap()
    }

    fn boot(self) -> Running {
        let (output, printed) = console();
        let machine = Machine::build(self.spec(), Devices::default(), output, timeline()).unwrap();
        let image = Image::open(Path::new(&file(self.name)), Native::MACHINE).unwrap();
        let machine = machine.boot(&image, None).unwrap();
        Running { machine, printed }
    }

    /// A machine like that of `source` with a copy of its memory.
    fn empty(self, source: &Machine) -> (Machine, PipeReader) {
        let size = MemorySize::from_bytes(MEMORY << 20);
        let copy = memory::allocate(&Native::memory_regions(size)).unwrap();
        let mut bytes = vec![0; usize::try_from(size.bytes()).unwrap()];
        source.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        copy.write_slice(&bytes, GuestAddress(0)).unwrap();
        let (output, printed) = console();
        let built = Machine::build_around(self.spec(), copy, Devices::default(), output, timeline());
        (built.unwrap(), printed)
    }

    /// What a machine that has the state of the paused `source` is, paused too.
    fn clone_of(self, source: &Machine) -> Running {
        let (machine, printed) = self.empty(source);
        let state = save(source);
        let machine = machine
            .resume_from(Reader::parse(&state).unwrap(), false)
            .unwrap();
        Running { machine, printed }
    }
}

struct Running {
    machine: Machine,
    printed: PipeReader,
}

impl Running {
    /// The next line that the guest prints.
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            let mut poll = libc::pollfd {
                fd: self.printed.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: there is one structure, valid for reads and writes.
            let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE) };
            let end = self.machine.report();
            assert!(end.is_none(), "the guest has ended: {end:?}");
            assert_eq!(
                ready,
                1,
                "nothing comes after {:?}",
                String::from_utf8_lossy(&line)
            );
            let mut byte = [0];
            self.printed.read_exact(&mut byte).unwrap();
            match byte[0] {
                b'\n' => return String::from_utf8(line).unwrap(),
                byte => line.push(byte),
            }
        }
    }

    fn wait_for(&mut self, wanted: &str) {
        while self.line() != wanted {}
    }

    fn tick(&mut self) -> u32 {
        let line = self.line();
        line.strip_prefix("tick ").unwrap().parse().unwrap()
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(lock(self.machine.serial()).enqueue(bytes), bytes.len());
    }
}

fn console() -> (Output, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Output::new(OwnedFd::from(writer)).unwrap(), reader)
}

fn timeline() -> Arc<Timeline> {
    Arc::new(Timeline::new(Instant::now(), false))
}

fn save(machine: &Machine) -> Vec<u8> {
    let mut archive = Writer::new();
    machine.save(&mut archive).unwrap();
    archive.into_bytes()
}

/// Lets a guest that counts go on in one machine after the other.
fn count(irqchip: IrqchipMode) {
    let ticker = Guest::new("ticker.elf", irqchip);
    let mut guest = ticker.boot();
    let mut next = 1;
    for _ in 0..5 {
        for _ in 0..3 {
            assert_eq!(guest.tick(), next);
            next += 1;
        }
        guest.machine.pause();
        let mut clone = ticker.clone_of(&guest.machine);
        // What was printed until the pause came belongs to the count; part of a line may have been.
        drop(guest.machine);
        let mut rest = String::new();
        guest.printed.read_to_string(&mut rest).unwrap();
        let (whole, begun) = rest.rsplit_once('\n').map_or(("", rest.as_str()), |both| both);
        for line in whole.lines() {
            assert_eq!(line, format!("tick {next}"));
            next += 1;
        }
        clone.machine.unpause();
        if !begun.is_empty() {
            assert_eq!(format!("{begun}{}", clone.line()), format!("tick {next}"));
            next += 1;
        }
        guest = clone;
    }
    assert_eq!(guest.tick(), next);
}

#[test]
fn a_count_continues() {
    count(IrqchipMode::Split);
}

#[test]
fn a_count_continues_with_controllers_in_the_kernel() {
    count(IrqchipMode::Kernel);
}

/// Input that waits in the serial port, with its interrupt pending, arrives in the clone, and so does input after it.
fn echo(name: &'static str, irqchip: IrqchipMode) {
    let echo = Guest::new(name, irqchip);
    let mut guest = echo.boot();
    guest.wait_for("ready");
    guest.send(b"one\n");
    guest.wait_for("one");
    guest.machine.pause();
    guest.send(b"two\n");
    let mut clone = echo.clone_of(&guest.machine);
    drop(guest);
    clone.machine.unpause();
    assert_eq!(clone.line(), "two");
    clone.send(b"three\n");
    assert_eq!(clone.line(), "three");
}

#[test]
fn pending_interrupts_of_every_controller_come_along() {
    echo("echo.elf", IrqchipMode::Split);
    echo("echo-ioapic.elf", IrqchipMode::Split);
    echo("echo.elf", IrqchipMode::Kernel);
    echo("echo-ioapic.elf", IrqchipMode::Kernel);
}

/// A second vCPU that has been started, or waits for it, or for an interrupt, is what it was.
#[test]
fn several_vcpus_continue() {
    let smp = Guest {
        vcpus: 2,
        ..Guest::new("smp.elf", IrqchipMode::Split)
    };
    for known in ["2 cpus by the MADT", "cpu 1 up"] {
        let mut guest = smp.boot();
        let mut printed = vec![guest.line()];
        while printed.last().unwrap() != known && printed.len() < 2 {
            printed.push(guest.line());
        }
        guest.machine.pause();
        let mut clone = smp.clone_of(&guest.machine);
        if guest.machine.report().is_some() {
            continue;
        }
        drop(guest.machine);
        let mut text = printed.join("\n") + "\n";
        guest.printed.read_to_string(&mut text).unwrap();
        clone.machine.unpause();
        while !text.contains("ok smp 2 cpus") {
            text += &clone.line();
            text.push('\n');
        }
        assert_eq!(text.matches("cpu 1 up").count(), 1, "{text}");
    }
}

/// Sections as key and payload, without what is time.
fn lasting(state: &[u8]) -> Vec<u8> {
    state.to_vec()
}

#[test]
fn a_state_that_was_restored_is_saved_as_it_was() {
    for irqchip in [IrqchipMode::Split, IrqchipMode::Kernel] {
        let ticker = Guest::new("echo-ioapic.elf", irqchip);
        let mut guest = ticker.boot();
        guest.wait_for("ready");
        guest.machine.pause();
        let (empty, _printed) = ticker.empty(&guest.machine);
        let first = save(&guest.machine);
        let clone = empty.resume_from(Reader::parse(&first).unwrap(), false).unwrap();
        let second = save(&clone);
        assert_eq!(lasting(&first).len(), lasting(&second).len());
    }
}

#[test]
fn only_a_paused_machine_is_saved() {
    let guest = Guest::new("ticker.elf", IrqchipMode::Split).boot();
    let saved = guest.machine.save(&mut Writer::new());
    assert!(matches!(saved, Err(Error::Running)), "{saved:?}");
}
