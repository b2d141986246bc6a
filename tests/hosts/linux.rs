//! Debian's Linux kernel, unmodified, as the guest: to a prompt that answers, by every way to boot it and on every shape
//! of machine. This kernel reads no MP table (CONFIG_X86_MPPARSE is not set), so that without ACPI it takes the PIC;
//! the smp guest goes by the MP table.

use crate::guest::Guest;

scenarios! {
    bzimage => prompt("/images/vmlinuz", "--memory 256M", |found| found.acpi && found.cpus == 1 && found.kvm_clock);
    elf_by_the_linux_protocol => prompt("/images/vmlinux", "--memory 256M --protocol linux", |found| found.acpi);
    elf_by_pvh => prompt("/images/vmlinux", "--memory 256M --protocol pvh", |found| found.acpi);
    interrupts_by_the_pic => prompt("/images/vmlinuz", "--memory 256M --no-acpi", |found| !found.acpi);
    interrupts_by_the_kernel => prompt("/images/vmlinuz", "--memory 256M --irqchip kernel", |found| found.acpi);
    two_cpus => prompt("/images/vmlinuz", "--memory 256M --cpus 2", |found| found.cpus == 2);
    memory_of_128_mib => prompt("/images/vmlinuz", "--memory 128M", |found| found.sees_memory(128));
    memory_up_to_the_hole => prompt("/images/vmlinuz", "--memory 3328M", |found| found.sees_memory(3328));
    memory_around_the_hole => prompt("/images/vmlinuz", "--memory 5G", |found| found.sees_memory(5120));
}

/// What the guest says that it has found.
struct Found {
    cpus: u64,
    acpi: bool,
    /// Whether it tells the time by kvmclock.
    kvm_clock: bool,
    /// In KiB, what the kernel keeps for itself excluded.
    memory: u64,
}

impl Found {
    /// Whether the memory is about `mib`, of which the kernel itself takes up to 64 MiB and a sixteenth.
    fn sees_memory(&self, mib: u64) -> bool {
        self.memory <= mib * 1024 && self.memory + 64 * 1024 + mib * 1024 / 16 >= mib * 1024
    }
}

fn prompt(kernel: &str, options: &str, holds: fn(&Found) -> bool) {
    let mut guest = Guest::start(&format!(
        "{kernel} --initrd /images/initrd {options} -- console=ttyS0 quiet panic=-1"
    ));
    guest.expect("linux: ");
    let line = guest.expect(" end");
    if !holds(&parse(&line)) {
        guest.fail(&format!("Linux found another machine: {line}"));
    }
    guest.expect("prompt> ");
    guest.type_line("echo hello-$((6*7))");
    guest.expect("hello-42");
    guest.expect("prompt> ");
    // By ACPI's sleep register where there is one, and else by the keyboard controller.
    guest.type_line(if kernel.ends_with("vmlinux") {
        "poweroff -f"
    } else {
        "reboot -f"
    });
    guest.ends_with(0);
}

fn parse(line: &str) -> Found {
    let field = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
    };
    Found {
        cpus: field("cpus").parse().unwrap_or_default(),
        acpi: field("acpi") == "yes",
        kvm_clock: field("clock") == "kvm-clock",
        memory: field("memory").parse().unwrap_or_default(),
    }
}
