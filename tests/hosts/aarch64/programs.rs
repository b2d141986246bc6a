//! The test guests of resources/guests, on aarch64.

use super::Map;
use crate::guest::mayfly_command;
use crate::programs::{
    expect_echo, expect_exit, expect_flood, expect_lines, expect_running, run_with_drives,
};

scenarios_on_each_map! {
    hello => |map| expect_exit(&on(map, "hello.elf"), "hello from mayfly", 0);
    demo => |map| expect_exit(&on(map, "demo.elf"), "", 0);
    entry_state => |map| expect_exit(&on(map, "entry.elf"), "ok entry", 0);
    command_line => |map| expect_exit(&on(map, "cmdline.elf -- one two=3"), "[one two=3]", 0);
    empty_command_line => |map| expect_exit(&on(map, "cmdline.elf"), "[]", 0);
    // Without the 64 KiB of the identity record.
    memory_of_128_mib => |map| expect_exit(&on(map, "memory.elf"), "ok memory 131008 KiB", 0);
    memory_above_4_gib => |map| expect_exit(&on(map, "memory.elf --memory 5G"), "ok memory 5242816 KiB", 0);
    segments => |map| expect_exit(&on(map, "segments.elf"), "ok segments", 0);
    bss => |map| expect_exit(&on(map, "bss.elf"), "ok bss", 0);
    initrd => |map| expect_exit(&on(map, "initrd.elf --initrd /images/initrd"), "ok initrd", 0);
    entry_of_image => |map| {
        let guest = format!("image.bin --machine {} --initrd /images/initrd", map.name);
        expect_exit(&on(map, &guest), "ok initrd", 0);
    };
    clock => |map| expect_exit(&on(map, "rtc.elf"), "ok rtc", 0);
    timer => |map| expect_exit(&on(map, "timer.elf"), "ok timer", 0);
    software_generated_interrupts => |map| expect_lines(&on(map, "sgi.elf"), &["version ", "ok sgi 10 interrupts"]);
    input => |map| expect_echo(&on(map, "echo.elf"));
    four_cpus => |map| expect_lines(&on(map, "smp.elf --cpus 4"), &["4 cpus by device tree", "ok smp 4 cpus"]);
    eight_cpus => |map| expect_exit(&on(map, "smp.elf --cpus 8"), "ok smp 8 cpus", 0);
    unclaimed_accesses => |map| expect_exit(&on(map, "poke.elf"), "ok poke", 0);
    exit_by_reset => |map| expect_exit(&on(map, "end-reset.elf"), "", 0);
    exit_by_power_off => |map| expect_exit(&on(map, "end-poweroff.elf"), "", 0);
    sigterm_while_halted => |map| expect_running(&on(map, "end-hlt.elf"), "halting");
    sigterm_while_looping => |map| expect_running(&on(map, "loop.elf"), "looping");
    // A byte takes a millisecond here: KVM leaves the emulated EL1 for each access to a device.
    flood_output_is_complete => |map| expect_flood(&on(map, "flood.elf"), 4);
    drives_by_polling => |map| run_with_drives(&on(map, "disk.elf"), "", "ok disk 100 sectors");
    drives_by_interrupt => |map| run_with_drives(&on(map, "disk.elf"), "-- irq=1", "ok disk 100 sectors");
    drives_with_hostile_guest => |map| run_with_drives(&on(map, "hostile.elf"), "", "ok hostile 2 devices");
}

/// On the host with a GICv3 alone: a GICv2 has at most 8.
#[test]
fn maximum_cpus() {
    crate::host::run(concat!(module_path!(), "::maximum_cpus"), || {
        expect_exit("fc/smp.elf --cpus 32", "ok smp 32 cpus", 0);
    });
}

/// On a host whose processor has neither.
#[test]
fn missing_processor_features_are_refused_by_name() {
    let path = concat!(module_path!(), "::missing_processor_features_are_refused_by_name");
    crate::host::run(path, || {
        for (features, name) in [("sve", "SVE"), ("pauth", "pointer authentication")] {
            let guest = ["run", "/guests/fc/hello.elf", "--cpu-features", features];
            let output = scratch::run(mayfly_command().args(guest));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            let message = format!("cannot give the vCPUs {name}: KVM on this host does not support it");
            assert!(stderr.contains(&message), "{stderr}");
        }
    });
}

/// Returns the arguments for a guest of this map.
pub fn on(map: Map, guest: &str) -> String {
    format!("{}/{guest}", map.name)
}
