//! Save and restore of a paused machine: another machine with a copy of the memory restores the state and resumes the guest.

mod identity;
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
use scratch::{AbortTimer, Limited};
use snapshot::{ArchiveReader, ArchiveWriter};
use vm_memory::{Bytes, GuestAddress};
use vmm::arch::{CpuRestore, Native, Platform};
use vmm::boot::Image;
use vmm::config::{
    AddressLayout, DriveConfig, HostMemory, IrqchipMode, MemorySize, NetConfig, VmConfig, VmSpec,
};
use vmm::machine::state::Error;
use vmm::machine::{Machine, MachineParts, PassedFiles, open_device, open_unlocked_devices};
use vmm::memory;
use vmm::timeline::Timeline;

use crate::guests::file;

/// Guest memory in MiB.
const MEMORY: u64 = 8;
/// Maximum wait for output of a guest, in polls of 100 ms.
const TIMEOUT_POLLS: i32 = 600;

/// Configuration of a guest to save.
#[derive(Clone, Copy)]
struct Guest {
    name: &'static str,
    vcpus: u32,
    irqchip: IrqchipMode,
    /// True for a guest with a drive and a network interface.
    has_devices: bool,
    cmdline: &'static str,
    acpi: bool,
    layout: AddressLayout,
}

impl Guest {
    const fn new(name: &'static str, irqchip: IrqchipMode) -> Self {
        Self {
            name,
            vcpus: 1,
            irqchip,
            has_devices: false,
            cmdline: "",
            acpi: true,
            layout: AddressLayout::V3,
        }
    }

    fn spec(self) -> VmSpec {
        let mut config = VmConfig::new(file(self.name).into());
        config.memory = MemorySize::from_bytes(MEMORY << 20);
        config.vcpus = self.vcpus;
        config.irqchip = self.irqchip;
        config.cmdline = self.cmdline.to_owned();
        config.acpi = self.acpi;
        config.layout = self.layout;
        if self.has_devices {
            let (disk, peer) = device_backends();
            // Read-only: source and clone open the disk at the same time.
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
        let configs = spec.config().devices.iter();
        let devices = configs.map(|config| open_device(config).unwrap()).collect();
        let machine = Machine::build(spec, None, devices, output, timeline()).unwrap();
        let image = Image::open(Path::new(&file(self.name)), Native::ARCHITECTURE).unwrap();
        let machine = machine.boot(&image, None).unwrap();
        Running {
            machine,
            printed,
            _limit: AbortTimer::start("a machine"),
        }
    }

    /// Restores `state` in a machine with a copy of the memory of `source`. Returns it and the output of its guest.
    fn try_restore(self, source: &Machine, state: &[u8]) -> (Result<Machine, Error>, PipeReader) {
        let size = MemorySize::from_bytes(MEMORY << 20);
        let copy = memory::allocate(&Native::memory_regions(size, self.layout)).unwrap();
        let mut bytes = vec![0; usize::try_from(size.bytes()).unwrap()];
        source.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        copy.write_slice(&bytes, GuestAddress(0)).unwrap();
        let (output, printed) = console();
        let spec = self.spec();
        let devices = open_unlocked_devices(&spec, &mut PassedFiles::default()).unwrap();
        let mut archive = ArchiveReader::parse(state).unwrap();
        let parts = MachineParts::create(&spec, Some(copy), None, &timeline()).unwrap();
        let restored = parts
            .begin_restore(&mut archive, CpuRestore::default())
            .and_then(|vcpus| {
                let machine = Machine::build_with(parts, spec, devices, output, timeline()).unwrap();
                machine.restore(vcpus, archive, false)
            });
        (restored, printed)
    }

    /// Clones the paused `source` into another paused machine.
    fn clone_machine(self, source: &Machine) -> Running {
        self.restore(source, &save(source))
    }

    /// Restores `state` of `source` in another paused machine.
    fn restore(self, source: &Machine, state: &[u8]) -> Running {
        let (machine, printed) = self.try_restore(source, state);
        Running {
            machine: machine.unwrap(),
            printed,
            _limit: AbortTimer::start("a machine"),
        }
    }
}

/// Returns the paths of a disk and of a listening socket that sends nothing.
fn device_backends() -> (&'static str, &'static str) {
    static ALL: LazyLock<(UnixListener, String, String)> = LazyLock::new(|| {
        let [disk, socket] = ["disk", "sock"].map(|name| {
            let path = scratch::process_path(&format!("state-{name}"));
            path.into_os_string().into_string().unwrap()
        });
        fs::write(&disk, [0; 4096]).unwrap();
        (UnixListener::bind(&socket).unwrap(), disk, socket)
    });
    (&ALL.1, &ALL.2)
}

struct Running {
    machine: Machine,
    printed: PipeReader,
    /// Limit of the life of the machine: a pause or a drop may wait for a vCPU.
    _limit: AbortTimer,
}

impl Running {
    /// Returns the next line that the guest prints.
    fn read_line(&mut self) -> String {
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

    /// Waits until output is readable.
    fn await_output(&self, line: &[u8]) {
        let mut poll = libc::pollfd {
            fd: self.printed.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        for _ in 0..TIMEOUT_POLLS {
            // SAFETY: `poll` is one structure, valid for reads and writes.
            if unsafe { libc::poll(&raw mut poll, 1, 100) } == 1 {
                return;
            }
            // Checked after the poll: output before the end comes first.
            let stop = self.machine.take_stop_reason();
            assert!(stop.is_none(), "the guest has stopped: {stop:?}");
        }
        panic!("no output after {:?}", String::from_utf8_lossy(line));
    }

    fn expect_line(&mut self, expected: &str) {
        while self.read_line() != expected {}
    }

    fn read_tick(&mut self) -> u32 {
        let line = self.read_line();
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

/// Moves a counting guest through several machines.
fn check_count(irqchip: IrqchipMode) {
    let ticker = Guest::new("ticker.elf", irqchip);
    let mut guest = ticker.boot();
    let mut next = 1;
    for _ in 0..5 {
        for _ in 0..3 {
            assert_eq!(guest.read_tick(), next);
            next += 1;
        }
        guest.machine.pause(scratch::TIMEOUT).unwrap();
        let mut clone = ticker.clone_machine(&guest.machine);
        // The guest may have printed more lines before the pause, and a part of one.
        drop(guest.machine);
        let mut rest = String::new();
        Limited(&guest.printed).read_to_string(&mut rest).unwrap();
        let (complete, partial) = rest.rsplit_once('\n').map_or(("", rest.as_str()), |both| both);
        for line in complete.lines() {
            assert_eq!(line, format!("tick {next}"));
            next += 1;
        }
        clone.machine.resume().unwrap();
        if !partial.is_empty() {
            assert_eq!(format!("{partial}{}", clone.read_line()), format!("tick {next}"));
            next += 1;
        }
        guest = clone;
    }
    assert_eq!(guest.read_tick(), next);
}

#[test]
fn count_continues() {
    check_count(IrqchipMode::Split);
}

#[test]
fn count_continues_with_kernel_irqchip() {
    check_count(IrqchipMode::Kernel);
}

/// Checks that input buffered in the serial port, with its interrupt pending, reaches the clone, and later input too.
fn check_echo(name: &'static str, irqchip: IrqchipMode) {
    let echo = Guest::new(name, irqchip);
    let mut guest = echo.boot();
    guest.expect_line("ready");
    guest.send(b"one\n");
    guest.expect_line("one");
    guest.machine.pause(scratch::TIMEOUT).unwrap();
    guest.send(b"two\n");
    let mut clone = echo.clone_machine(&guest.machine);
    drop(guest);
    clone.machine.resume().unwrap();
    assert_eq!(clone.read_line(), "two");
    clone.send(b"three\n");
    assert_eq!(clone.read_line(), "three");
}

#[test]
fn pending_pic_interrupts_are_restored() {
    check_echo("echo.elf", IrqchipMode::Split);
}

#[test]
fn pending_ioapic_interrupts_are_restored() {
    check_echo("echo-ioapic.elf", IrqchipMode::Split);
}

#[test]
fn pending_kernel_pic_interrupts_are_restored() {
    check_echo("echo.elf", IrqchipMode::Kernel);
}

#[test]
fn pending_kernel_ioapic_interrupts_are_restored() {
    check_echo("echo-ioapic.elf", IrqchipMode::Kernel);
}

/// Covers a second vCPU that waits for its startup IPI, and a running one.
#[test]
fn two_vcpus_are_restored() {
    let smp = Guest {
        vcpus: 2,
        ..Guest::new("smp.elf", IrqchipMode::Split)
    };
    for lines in [1, 2] {
        // The guest may exit before the pause: retry, a limited number of times.
        let saved = (0..50).find_map(|_| {
            let mut guest = smp.boot();
            let printed: String = (0..lines).map(|_| guest.read_line() + "\n").collect();
            guest.machine.pause(scratch::TIMEOUT).unwrap();
            let mut archive = ArchiveWriter::new();
            match guest.machine.save(&mut archive) {
                Ok(()) => Some((guest, printed, archive.into_bytes())),
                Err(Error::Ended(_)) => None,
                Err(error) => panic!("{}", vmm::ErrorChain(&error)),
            }
        });
        let (guest, mut printed, state) = saved.unwrap();
        let mut clone = smp.restore(&guest.machine, &state);
        drop(guest.machine);
        Limited(&guest.printed).read_to_string(&mut printed).unwrap();
        clone.machine.resume().unwrap();
        while !printed.contains("ok smp 2 cpus") {
            printed += &clone.read_line();
            printed.push('\n');
        }
        assert_eq!(printed.matches("cpu 1 up").count(), 1, "{printed}");
    }
}

#[test]
fn mismatched_state_is_rejected() {
    let echo = Guest::new("echo.elf", IrqchipMode::Split);
    let mut guest = echo.boot();
    guest.expect_line("ready");
    guest.machine.pause(scratch::TIMEOUT).unwrap();
    let state = save(&guest.machine);
    let restore_error = |other: Guest, state: &[u8]| {
        let (restored, printed) = other.try_restore(&guest.machine, state);
        let error = match restored {
            Err(error) => vmm::ErrorChain(&error).to_string(),
            Ok(_) => panic!("the restore succeeded"),
        };
        let mut text = String::new();
        Limited(printed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "", "the guest ran");
        error
    };
    let two = Guest { vcpus: 2, ..echo };
    let error = restore_error(two, &state);
    assert!(error.contains("section \"vcpu/1\" is missing"), "{error}");
    let kernel = Guest {
        irqchip: IrqchipMode::Kernel,
        ..echo
    };
    let error = restore_error(kernel, &state);
    assert!(
        error.contains("split-irqchip version 1, but kernel-irqchip"),
        "{error}"
    );
    let mut more = state.clone();
    more.extend(b"\x01\0x\x01\0y\0\0\0\0\0\0\0\0");
    let error = restore_error(echo, &more);
    assert!(error.contains("cannot restore the sections [\"x\"]"), "{error}");
}

#[test]
fn running_machine_is_not_saved() {
    let guest = Guest::new("ticker.elf", IrqchipMode::Split).boot();
    let result = guest.machine.save(&mut ArchiveWriter::new());
    assert!(matches!(result, Err(Error::Running)), "{result:?}");
}
