//! The state of a paused machine goes into another one, whose memory is a copy, and the guest goes on there.

mod saved;

use std::fs;
use std::io::{PipeReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use devices::lock;
use devices::serial::SerialOutput;
use snapshot::{ArchiveReader, ArchiveWriter};
use vm_memory::{Bytes, GuestAddress};
use vmm::arch::{Native, Platform};
use vmm::boot::Image;
use vmm::config::{DriveConfig, HostMemory, IrqchipMode, MemorySize, NetConfig, VmConfig, VmSpec};
use vmm::machine::state::Error;
use vmm::machine::{Machine, open_devices};
use vmm::memory;
use vmm::timeline::Timeline;

use crate::guests::file;

/// Guest memory in MiB.
const MEMORY: u64 = 8;
/// Tenths of a second after which a guest that prints nothing counts as dead.
const TIMEOUT_MS: i32 = 600;

/// A guest to be saved: its image, vCPUs, interrupt controllers.
#[derive(Clone, Copy)]
struct Guest {
    name: &'static str,
    vcpus: u32,
    irqchip: IrqchipMode,
    /// Whether it has a drive and a network interface.
    devices: bool,
}

impl Guest {
    const fn new(name: &'static str, irqchip: IrqchipMode) -> Self {
        Self {
            name,
            vcpus: 1,
            irqchip,
            devices: false,
        }
    }

    fn spec(self) -> VmSpec {
        let mut config = VmConfig::new(file(self.name).into());
        config.memory = MemorySize::from_bytes(MEMORY << 20);
        config.vcpus = self.vcpus;
        config.irqchip = self.irqchip;
        if self.devices {
            let (disk, peer) = surroundings();
            // Two machines have it at a time, as only a disk that is read allows.
            let drive: DriveConfig = format!("{disk},ro").parse().unwrap();
            config.devices.push(drive.into());
            let net = format!("unix:{peer},mac=02:00:00:00:00:07");
            let net: NetConfig = net.parse().unwrap();
            config.devices.push(net.into());
        }
        config.check(&HostMemory::this()).unwrap()
    }

    fn boot(self) -> Running {
        let (output, printed) = console();
        let spec = self.spec();
        let devices = open_devices(&spec).unwrap();
        let machine = Machine::build(spec, devices, output, timeline()).unwrap();
        let image = Image::open(Path::new(&file(self.name)), Native::ARCHITECTURE).unwrap();
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
        let spec = self.spec();
        let devices = open_devices(&spec).unwrap();
        let built = Machine::build_with_memory(spec, copy, devices, output, timeline());
        (built.unwrap(), printed)
    }

    /// What a machine that has the state of the paused `source` is, paused too.
    fn clone_of(self, source: &Machine) -> Running {
        self.resumed(source, &save(source))
    }

    fn resumed(self, source: &Machine, state: &[u8]) -> Running {
        let (machine, printed) = self.empty(source);
        let machine = machine.restore(ArchiveReader::parse(state).unwrap(), false);
        Running {
            machine: machine.unwrap(),
            printed,
        }
    }
}

/// A disk, and a socket on which somebody listens who says nothing.
fn surroundings() -> (&'static str, &'static str) {
    static ALL: LazyLock<(UnixListener, String, String)> = LazyLock::new(|| {
        let [disk, socket] = ["disk", "sock"].map(|name| {
            let path = format!("{}/state-{name}", env!("CARGO_TARGET_TMPDIR"));
            let _ = fs::remove_file(&path);
            path
        });
        fs::write(&disk, [0; 4096]).unwrap();
        (UnixListener::bind(&socket).unwrap(), disk, socket)
    });
    (&ALL.1, &ALL.2)
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
            self.await_output(&line);
            let mut byte = [0];
            self.printed.read_exact(&mut byte).unwrap();
            match byte[0] {
                b'\n' => return String::from_utf8(line).unwrap(),
                byte => line.push(byte),
            }
        }
    }

    /// Waits until there is something to read.
    fn await_output(&self, line: &[u8]) {
        let mut poll = libc::pollfd {
            fd: self.printed.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        for _ in 0..TIMEOUT_MS {
            // SAFETY: there is one structure, valid for reads and writes.
            if unsafe { libc::poll(&raw mut poll, 1, 100) } == 1 {
                return;
            }
            // What it has printed before is read first.
            let end = self.machine.take_stop_reason();
            assert!(end.is_none(), "the guest has ended: {end:?}");
        }
        panic!("nothing comes after {:?}", String::from_utf8_lossy(line));
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

fn console() -> (SerialOutput, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    (SerialOutput::new(OwnedFd::from(writer)).unwrap(), reader)
}

fn timeline() -> Arc<Timeline> {
    Arc::new(Timeline::new(Instant::now(), false))
}

fn save(machine: &Machine) -> Vec<u8> {
    let mut archive = ArchiveWriter::new();
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
        clone.machine.resume();
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
    clone.machine.resume();
    assert_eq!(clone.line(), "two");
    clone.send(b"three\n");
    assert_eq!(clone.line(), "three");
}

#[test]
fn pending_interrupts_of_the_pic_come_along() {
    echo("echo.elf", IrqchipMode::Split);
}

#[test]
fn pending_interrupts_of_the_ioapic_come_along() {
    echo("echo-ioapic.elf", IrqchipMode::Split);
}

#[test]
fn pending_interrupts_of_the_pic_in_the_kernel_come_along() {
    echo("echo.elf", IrqchipMode::Kernel);
}

#[test]
fn pending_interrupts_of_the_ioapic_in_the_kernel_come_along() {
    echo("echo-ioapic.elf", IrqchipMode::Kernel);
}

/// A second vCPU that waits to be started, or has been, is what it was.
#[test]
fn several_vcpus_continue() {
    let smp = Guest {
        vcpus: 2,
        ..Guest::new("smp.elf", IrqchipMode::Split)
    };
    for lines in [1, 2] {
        // A guest may end before it is paused; one that is quick every time is not believed.
        let saved = (0..50).find_map(|_| {
            let mut guest = smp.boot();
            let printed: String = (0..lines).map(|_| guest.line() + "\n").collect();
            guest.machine.pause();
            let mut archive = ArchiveWriter::new();
            match guest.machine.save(&mut archive) {
                Ok(()) => Some((guest, printed, archive.into_bytes())),
                Err(Error::Ended(_)) => None,
                Err(error) => panic!("{}", vmm::ErrorChain(&error)),
            }
        });
        let (mut guest, mut printed, state) = saved.unwrap();
        let mut clone = smp.resumed(&guest.machine, &state);
        drop(guest.machine);
        guest.printed.read_to_string(&mut printed).unwrap();
        clone.machine.resume();
        while !printed.contains("ok smp 2 cpus") {
            printed += &clone.line();
            printed.push('\n');
        }
        assert_eq!(printed.matches("cpu 1 up").count(), 1, "{printed}");
    }
}

#[test]
fn what_does_not_fit_is_refused_before_the_guest_runs() {
    let echo = Guest::new("echo.elf", IrqchipMode::Split);
    let mut guest = echo.boot();
    guest.wait_for("ready");
    guest.machine.pause();
    let state = save(&guest.machine);
    let refused = |other: Guest, state: &[u8]| {
        let (machine, mut printed) = other.empty(&guest.machine);
        let error = match machine.restore(ArchiveReader::parse(state).unwrap(), false) {
            Err(error) => vmm::ErrorChain(&error).to_string(),
            Ok(_) => panic!("it was taken"),
        };
        let mut text = String::new();
        printed.read_to_string(&mut text).unwrap();
        assert_eq!(text, "", "the guest ran");
        error
    };
    let two = Guest { vcpus: 2, ..echo };
    let error = refused(two, &state);
    assert!(error.contains("section \"vcpu/1\" is missing"), "{error}");
    let kernel = Guest {
        irqchip: IrqchipMode::Kernel,
        ..echo
    };
    let error = refused(kernel, &state);
    assert!(
        error.contains("split-irqchip version 1, but kernel-irqchip"),
        "{error}"
    );
    let mut more = state.clone();
    more.extend(b"\x01\0x\x01\0y\0\0\0\0\0\0\0\0");
    let error = refused(echo, &more);
    assert!(error.contains("cannot restore the sections [\"x\"]"), "{error}");
}

#[test]
fn only_a_paused_machine_is_saved() {
    let guest = Guest::new("ticker.elf", IrqchipMode::Split).boot();
    let saved = guest.machine.save(&mut ArchiveWriter::new());
    assert!(matches!(saved, Err(Error::Running)), "{saved:?}");
}
