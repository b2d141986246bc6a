//! Debian's unmodified Linux kernel as the guest, up to a working prompt, with each boot protocol and various machines. This
//! kernel reads no MP table (CONFIG_X86_MPPARSE is not set): without ACPI it uses the PIC. The guest smp.elf covers the MP
//! table.

use std::process::Command;

use crate::guest::{Guest, mayfly_command};

// A boot takes most of the time of a scenario: those of other protocols and machines vary the size of the memory too.
scenarios! {
    bzimage => boot_to_prompt("/images/vmlinuz", "--memory 256M", |info| info.acpi && info.cpus == 1 && info.kvm_clock);
    elf_by_linux_protocol_with_128_mib =>
        boot_to_prompt("/images/vmlinux", "--memory 128M --protocol linux", |info| info.acpi && info.has_memory(128));
    elf_by_pvh => boot_to_prompt("/images/vmlinux", "--memory 256M --protocol pvh", |info| info.acpi);
    interrupts_by_pic => boot_to_prompt("/images/vmlinuz", "--memory 256M --no-acpi", |info| !info.acpi);
    interrupts_by_kernel_irqchip_with_memory_up_to_hole =>
        boot_to_prompt("/images/vmlinuz", "--memory 3328M --irqchip kernel", |info| info.acpi && info.has_memory(3328));
    two_cpus_with_memory_around_hole =>
        boot_to_prompt("/images/vmlinuz", "--memory 5G --cpus 2", |info| info.cpus == 2 && info.has_memory(5120));
    random_numbers_follow_generation_id => reseed_after_restore("/images/vmlinuz-generic", "ttyS0");
}

/// Restores a guest with this `kernel` twice: it seeds its random numbers anew each time, by the driver of VMGenID.
pub fn reseed_after_restore(kernel: &str, console: &str) {
    const SOCKET: &str = "/tmp/reseed.sock";
    const SNAPSHOT: &str = "/tmp/reseed";
    let count = "echo count-$(dmesg | grep -c 'crng reseeded due to virtual machine fork')";
    let mut guest = Guest::start(&format!(
        "{kernel} --initrd /images/initrd --memory 256M --api-sock {SOCKET} -- console={console} quiet panic=-1"
    ));
    guest.expect("prompt> ");
    guest.type_line(count);
    guest.expect("count-0");
    guest.expect("prompt> ");
    run(mayfly_command().args(["snapshot", SNAPSHOT, "--api-sock", SOCKET]));
    for _ in 0..2 {
        guest = guest.restart(&format!("restore {SNAPSHOT}"));
        guest.type_line(count);
        guest.expect("count-1");
        guest.expect("prompt> ");
    }
    guest.type_line("reboot -f");
    guest.expect_exit(0);
    std::fs::remove_dir_all(SNAPSHOT).unwrap();
}

fn run(command: &mut Command) {
    let output = scratch::run(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
}

/// Machine as the guest reports it.
struct MachineInfo {
    cpus: u64,
    acpi: bool,
    /// True with kvmclock as the clock source.
    kvm_clock: bool,
    /// MemTotal in KiB, without the memory of the kernel itself.
    memory: u64,
}

impl MachineInfo {
    /// Returns whether the memory is about `mib`. The kernel itself takes up to 64 MiB and a sixteenth.
    fn has_memory(&self, mib: u64) -> bool {
        self.memory <= mib * 1024 && self.memory + 64 * 1024 + mib * 1024 / 16 >= mib * 1024
    }
}

fn boot_to_prompt(kernel: &str, options: &str, is_expected: fn(&MachineInfo) -> bool) {
    let mut guest = Guest::start(&format!(
        "{kernel} --initrd /images/initrd {options} -- console=ttyS0 quiet panic=-1"
    ));
    guest.expect("linux: ");
    let line = guest.expect(" end");
    if !is_expected(&parse(&line)) {
        guest.fail(&format!("Linux reports a different machine: {line}"));
    }
    guest.expect("prompt> ");
    guest.type_line("echo hello-$((6*7))");
    guest.expect("hello-42");
    guest.expect("prompt> ");
    // poweroff uses the ACPI sleep register, reboot the keyboard controller.
    guest.type_line(if kernel.ends_with("vmlinux") {
        "poweroff -f"
    } else {
        "reboot -f"
    });
    guest.expect_exit(0);
}

fn parse(line: &str) -> MachineInfo {
    let field = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
    };
    MachineInfo {
        cpus: field("cpus").parse().unwrap_or_default(),
        acpi: field("acpi") == "yes",
        kvm_clock: field("clock") == "kvm-clock",
        memory: field("memory").parse().unwrap_or_default(),
    }
}
