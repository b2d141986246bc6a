//! The test guests of resources/guests on a faithful x86_64 machine; its README says what each does. Where level 0 is
//! interpreted, CPUID and the timers are not what they are here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, process};

use crate::guest::Guest;

/// mayfly's exit status after a triple fault.
const TRIPLE_FAULT: i32 = 120;

scenarios! {
    hello => ends("hello.elf", "hello from mayfly", 0);
    demo => ends("demo.elf", "", 0);
    entry_state => ends("entry.elf", "ok entry", 0);
    entry_by_pvh => ends("pvh.elf", "entered by pvh", 0);
    entry_by_the_linux_protocol_when_forced => ends("pvh.elf --protocol linux", "entered by linux", 0);
    entry_by_multiboot => ends("multiboot.elf", "entered by multiboot", 0);
    module_by_multiboot =>
        shows("multiboot.elf --initrd /images/initrd -- a=1", &["multiboot.elf a=1]", "module ", "ok multiboot"]);
    entry_by_multiboot_of_a_flat_file => ends("multiboot-flat.bin", "entered by multiboot", 0);
    command_line => ends("cmdline.elf -- one two=3", "[one two=3]", 0);
    command_line_by_pvh => ends("cmdline-pvh.elf -- one two=3", "[one two=3]", 0);
    memory_of_1_mib => ends("memory-low.elf --memory 1M", "ok memory", 0);
    memory_of_128_mib => ends("memory.elf", "ok memory", 0);
    memory_around_the_hole => ends("memory.elf --memory 5G", "ok memory", 0);
    memory_by_pvh => ends("memory-pvh.elf --memory 5G", "ok memory", 0);
    segments => ends("segments.elf", "ok segments", 0);
    bss => ends("bss.elf", "ok bss", 0);
    initrd => ends("initrd.elf --initrd /images/initrd", "ok initrd", 0);
    initrd_by_pvh => ends("initrd-pvh.elf --initrd /images/initrd", "ok initrd", 0);
    tables => shows("tables.elf --cpus 2", &["cpus 2 ioapics 1 overrides 1", "cpus 2 buses 1 ioapics 1", "ok tables"]);
    no_tables => shows("tables.elf --no-acpi --no-mptable", &["no acpi", "no mptable"]);
    cpuid => ends("cpuid.elf", "ok cpuid", 0);
    clock => ends("cmos.elf", "ok cmos", 0);
    timer_by_the_pic => ends("pit-pic.elf", "ok pit-pic", 0);
    timer_by_the_pic_of_the_kernel => ends("pit-pic.elf --irqchip kernel", "ok pit-pic", 0);
    timer_calibration => ends("pit-calibrate.elf", "ok pit-calibrate", 0);
    timer_of_the_local_apic => ends("apic-timer.elf", "ok apic-timer", 0);
    interrupts_by_the_ioapic => ends("ioapic.elf", "ok ioapic", 0);
    level_triggered_interrupts_by_the_ioapic => ends("ioapic.elf -- level=1", "ok ioapic 10 interrupts", 0);
    interrupts_by_the_ioapic_of_the_kernel => ends("ioapic.elf --irqchip kernel", "ok ioapic", 0);
    input_by_the_pic => echoes("echo.elf");
    input_by_the_ioapic => echoes("echo-ioapic.elf");
    input_by_the_irqchip_of_the_kernel => echoes("echo.elf --irqchip kernel");
    four_cpus => shows("smp.elf --cpus 4", &["4 cpus by madt", "ok smp 4 cpus"]);
    four_cpus_with_the_interrupt_controllers_of_the_kernel =>
        shows("smp.elf --cpus 4 --irqchip kernel", &["4 cpus by madt", "ok smp 4 cpus"]);
    as_many_cpus_as_there_can_be => ends("smp.elf --cpus 32", "ok smp 32 cpus", 0);
    four_cpus_by_the_mp_table => shows("smp.elf --cpus 4 --no-acpi", &["4 cpus by mptable", "ok smp 4 cpus"]);
    unclaimed_addresses => ends("poke.elf", "ok poke", 0);
    end_by_reset => ends("end-reset.elf", "", 0);
    end_by_power_off => ends("end-poweroff.elf", "", 0);
    end_by_the_sleep_register => ends("end-sleep.elf", "", 0);
    end_by_the_reset_vector => ends("end-vector.elf", "", 0);
    end_with_a_code => ends("end-code.elf -- code=7", "", 7);
    end_by_a_triple_fault => ends("end-triple.elf", "", TRIPLE_FAULT);
    end_while_halted => terminates("end-hlt.elf", "halting");
    end_while_looping => terminates("loop.elf", "looping");
    all_output_arrives => flood(64);
    drives_by_polling => drives("disk.elf", "", "ok disk 100 sectors");
    drives_by_the_pic => drives("disk.elf", "-- irq=1", "ok disk 100 sectors");
    drives_by_the_pic_of_the_kernel => drives("disk.elf", "--irqchip kernel -- irq=1", "ok disk 100 sectors");
    drives_of_a_hostile_guest => drives("hostile.elf", "", "ok hostile 2 devices");
}

/// The guest prints `text` and ends with `code`.
fn ends(arguments: &str, text: &str, code: i32) {
    let mut guest = start(arguments);
    guest.expect(text);
    let printed = guest.ends_with(code);
    assert!(!printed.contains("FAIL"), "{arguments} printed:\n{printed}");
}

/// The guest prints each of `texts`, in their order, and ends well.
fn shows(arguments: &str, texts: &[&str]) {
    let mut guest = start(arguments);
    for text in texts {
        guest.expect(text);
    }
    let printed = guest.ends_with(0);
    assert!(!printed.contains("FAIL"), "{arguments} printed:\n{printed}");
}

/// What is typed comes back.
fn echoes(arguments: &str) {
    let mut guest = start(arguments);
    guest.expect("ready");
    guest.type_line("to and fro");
    guest.expect("to and fro");
    guest.type_line("q");
    guest.expect("bye");
    guest.ends_with(0);
}

/// The guest never ends of itself, and SIGTERM ends it.
fn terminates(arguments: &str, text: &str) {
    let mut guest = start(arguments);
    guest.expect(text);
    guest.terminate();
}

/// Each of the numbered lines, 64 bytes long, arrives in its place.
fn flood(kib: usize) {
    let printed = start(&format!("flood.elf -- kib={kib}")).ends_with(0);
    let lines: Vec<&str> = printed.lines().filter(|line| line.contains(":abc")).collect();
    assert_eq!(lines.len(), kib * 1024 / 64);
    for (number, line) in lines.iter().enumerate() {
        assert!(
            line.starts_with(&format!("{number:08}:")),
            "line {number} is {line}"
        );
        assert_eq!(line.len(), 63);
    }
}

/// The guest prints `text`, given a drive by each engine, and ends well.
fn drives(guest: &str, arguments: &str, text: &str) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let file = || {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("mayfly-drive-{}-{number}", process::id()));
        fs::write(&path, vec![0; 100 * 512]).unwrap();
        path
    };
    let (first, second) = (file(), file());
    let options = format!(
        "--disk {},cache=writeback --disk {},engine=async",
        first.display(),
        second.display()
    );
    ends(&format!("{guest} {options} {arguments}"), text, 0);
    for path in [first, second] {
        fs::remove_file(path).unwrap();
    }
}

fn start(arguments: &str) -> Guest {
    let arguments = arguments.replace("/images/initrd", &crate::file("/images/initrd"));
    let (guest, options) = arguments.split_once(' ').unwrap_or((&arguments, ""));
    let guest = crate::file(&format!("/guests/{guest}"));
    Guest::start(&format!("{guest} {options}"))
}
