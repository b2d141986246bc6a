//! The test guests of resources/guests, which its README describes. On hosts that emulate kernel mode, CPUID and timers
//! differ from those of hardware.

use scratch::Temporary;

use crate::guest::{Guest, mayfly_command};

/// Exit status of mayfly after a triple fault.
const TRIPLE_FAULT: i32 = 120;
/// Exit status of mayfly after an error of KVM.
const FAULT: i32 = 121;

scenarios! {
    hello => expect_exit("hello.elf", "hello from mayfly", 0);
    demo => expect_exit("demo.elf", "", 0);
    entry_state => expect_exit("entry.elf", "ok entry", 0);
    entry_by_pvh => expect_exit("pvh.elf", "entered by pvh", 0);
    entry_by_forced_linux_protocol => expect_exit("pvh.elf --protocol linux", "entered by linux", 0);
    entry_by_multiboot => expect_exit("multiboot.elf", "entered by multiboot", 0);
    entry_of_64_bit_elf_by_multiboot => expect_exit("multiboot-64.elf", "entered by multiboot", 0);
    module_by_multiboot =>
        expect_lines("multiboot.elf --initrd /images/initrd -- a=1", &["multiboot.elf a=1]", "module ", "ok multiboot"]);
    module_of_flat_file_by_multiboot =>
        expect_lines("multiboot-flat.bin --initrd /images/initrd", &["module ", "ok multiboot"]);
    entry_of_flat_file_by_multiboot => expect_exit("multiboot-flat.bin", "entered by multiboot", 0);
    command_line => expect_exit("cmdline.elf -- one two=3", "[one two=3]", 0);
    empty_command_line => expect_exit("cmdline.elf", "[]", 0);
    command_line_by_pvh => expect_exit("cmdline-pvh.elf -- one two=3", "[one two=3]", 0);
    command_line_of_image_above_1_gib => expect_exit("cmdline-high.elf --memory 1100M -- one two=3", "[one two=3]", 0);
    page_tables_map_only_the_image => expect_exit("paging.elf", "ok paging", 0);
    memory_of_1_mib => expect_exit("memory-low.elf --memory 1M", "ok memory", 0);
    memory_of_128_mib => expect_exit("memory.elf", "ok memory", 0);
    memory_around_hole => expect_exit("memory.elf --memory 5G", "ok memory", 0);
    memory_of_3200_mib => expect_exit("memory.elf --memory 3200M", "ok memory", 0);
    memory_by_pvh => expect_exit("memory-pvh.elf --memory 5G", "ok memory", 0);
    segments => expect_exit("segments.elf", "ok segments", 0);
    bss => expect_exit("bss.elf", "ok bss", 0);
    initrd => expect_exit("initrd.elf --initrd /images/initrd", "ok initrd", 0);
    initrd_by_pvh => expect_exit("initrd-pvh.elf --initrd /images/initrd", "ok initrd", 0);
    entry_of_bzimage => expect_exit("bzimage.bin --initrd /images/initrd", "ok initrd", 0);
    tables => expect_lines("tables.elf --cpus 2", &["cpus 2 ioapics 1 overrides 1", "cpus 2 buses 1 ioapics 1", "ok tables"]);
    no_tables => expect_lines("tables.elf --no-acpi --no-mptable", &["no acpi", "no mptable"]);
    cpuid => expect_exit("cpuid.elf", "ok cpuid", 0);
    clock => expect_exit("cmos.elf", "ok cmos", 0);
    timer_by_pic => expect_exit("pit-pic.elf", "ok pit-pic", 0);
    timer_by_kernel_pic => expect_exit("pit-pic.elf --irqchip kernel", "ok pit-pic", 0);
    timer_calibration => expect_exit("pit-calibrate.elf", "ok pit-calibrate", 0);
    timer_by_local_apic => expect_exit("apic-timer.elf", "ok apic-timer", 0);
    interrupts_by_ioapic => expect_exit("ioapic.elf", "ok ioapic", 0);
    level_triggered_interrupts_by_ioapic => expect_exit("ioapic.elf -- level=1", "ok ioapic 10 interrupts", 0);
    interrupts_by_kernel_ioapic => expect_exit("ioapic.elf --irqchip kernel", "ok ioapic", 0);
    input_by_pic => expect_echo("echo.elf");
    input_by_ioapic => expect_echo("echo-ioapic.elf");
    input_by_kernel_irqchip => expect_echo("echo.elf --irqchip kernel");
    four_cpus => expect_lines("smp.elf --cpus 4", &["4 cpus by madt", "ok smp 4 cpus"]);
    four_cpus_with_kernel_irqchip =>
        expect_lines("smp.elf --cpus 4 --irqchip kernel", &["4 cpus by madt", "ok smp 4 cpus"]);
    maximum_cpus => expect_exit("smp.elf --cpus 32", "ok smp 32 cpus", 0);
    four_cpus_by_mp_table => expect_lines("smp.elf --cpus 4 --no-acpi", &["4 cpus by mptable", "ok smp 4 cpus"]);
    unclaimed_accesses => expect_exit("poke.elf", "ok poke", 0);
    exit_by_reset => expect_exit("end-reset.elf", "", 0);
    exit_by_power_off => expect_exit("end-poweroff.elf", "", 0);
    exit_by_sleep_register => expect_exit("end-sleep.elf", "", 0);
    exit_by_acpi => expect_exit("end-acpi.elf", "elements of _S5_: 1", 0);
    exit_by_reset_vector => expect_exit("end-vector.elf", "", 0);
    exit_with_code => expect_exit("end-code.elf -- code=7", "", 7);
    exit_by_triple_fault => expect_exit("end-triple.elf", "", TRIPLE_FAULT);
    crash_report_names_functions => expect_crash_report();
    sigterm_while_halted => expect_running("end-hlt.elf", "halting");
    sigterm_while_looping => expect_running("loop.elf", "looping");
    flood_output_is_complete => expect_flood("flood.elf", 64);
    drives_by_polling => run_with_drives("disk.elf", "", "ok disk 100 sectors");
    drives_by_pic => run_with_drives("disk.elf", "-- irq=1", "ok disk 100 sectors");
    drives_by_kernel_pic => run_with_drives("disk.elf", "--irqchip kernel -- irq=1", "ok disk 100 sectors");
    drives_at_constant_addresses =>
        run_with_drives("disk.elf", "--no-device-arguments -- fixed=1 irq=1", "ok disk 100 sectors");
    drives_without_version_1 => run_with_drives("disk.elf", "-- unversioned=1", "ok disk 100 sectors");
    drives_with_hostile_guest => run_with_drives("hostile.elf", "", "ok hostile 2 devices");
}

/// Expects `text` and exit with `code`.
pub fn expect_exit(arguments: &str, text: &str, code: i32) {
    let mut guest = start(arguments);
    guest.expect(text);
    let printed = guest.expect_exit(code);
    assert!(!printed.contains("FAIL"), "{arguments} printed:\n{printed}");
}

/// Expects a report of a crash three functions deep.
fn expect_crash_report() {
    let guest = crate::file("/guests/crash.elf");
    let output = scratch::run(mayfly_command().args(["run", &guest, "--", "mmio=1"]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FAULT), "{text}");
    let mut lines = text
        .lines()
        .skip_while(|line| *line != "mayfly: backtrace of vCPU 0 by frame pointers");
    for function in [" by ", " third+0x", " second+0x", " first+0x", " guest+0x"] {
        let line = lines.next().unwrap_or_default();
        assert!(line.contains(function), "{text}");
    }
}

/// Expects `texts` in their order and exit with 0.
pub fn expect_lines(arguments: &str, texts: &[&str]) {
    let mut guest = start(arguments);
    for text in texts {
        guest.expect(text);
    }
    let printed = guest.expect_exit(0);
    assert!(!printed.contains("FAIL"), "{arguments} printed:\n{printed}");
}

/// Expects an echo of typed lines.
pub fn expect_echo(arguments: &str) {
    let mut guest = start(arguments);
    guest.expect("ready");
    guest.type_line("to and fro");
    guest.expect("to and fro");
    guest.type_line("q");
    guest.expect("bye");
    guest.expect_exit(0);
}

/// Expects `text` of a guest without end, then sends SIGTERM.
pub fn expect_running(arguments: &str, text: &str) {
    let mut guest = start(arguments);
    guest.expect(text);
    guest.terminate();
}

/// Expects the numbered lines of 64 bytes each, in their order.
pub fn expect_flood(guest: &str, kib: usize) {
    let printed = start(&format!("{guest} -- kib={kib}")).expect_exit(0);
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

/// Expects `text` of a guest with one drive for each I/O engine, and exit with 0.
pub fn run_with_drives(guest: &str, arguments: &str, text: &str) {
    let (first, second) = (Temporary::with(&[0; 100 * 512]), Temporary::with(&[0; 100 * 512]));
    let options = format!(
        "--disk {},cache=writeback --disk {},engine=async",
        first.path().display(),
        second.path().display()
    );
    expect_exit(&format!("{guest} {options} {arguments}"), text, 0);
}

fn start(arguments: &str) -> Guest {
    let arguments = arguments.replace("/images/initrd", &crate::file("/images/initrd"));
    let (guest, options) = arguments.split_once(' ').unwrap_or((&arguments, ""));
    let guest = crate::file(&format!("/guests/{guest}"));
    Guest::start(&format!("{guest} {options}"))
}
