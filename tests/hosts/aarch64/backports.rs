//! Scenarios of the host with the kernel of Debian's backports and all features of a processor that QEMU emulates.

use super::kvm::check_counter_offset;
use super::programs::on;
use super::snapshots::{check_counters, check_extension, check_identities, check_ticks};
use crate::linux::reseed_after_restore;
use crate::programs::expect_exit;
use crate::snapshots::start_with_features;

mod gic3 {
    mod fc {
        scenarios_of_map! { FC
            hello => |map| expect_exit(&on(map, "hello.elf"), "hello from mayfly", 0);
            timer => |map| expect_exit(&on(map, "timer.elf"), "ok timer", 0);
            counters_have_offset => |_| check_counter_offset();
            vectors_are_restored => |map| check_extension(map, "sve.elf", "sve", "ok sve 256 bytes");
            keys_are_restored => |map| check_extension(map, "pauth.elf", "pauth", "ok pauth 5 keys");
            vectors_are_off_by_default => |map| expect_exit(&on(map, "sve.elf --cpu-features pauth"), "no sve", 0);
            keys_are_off_by_default => |map| expect_exit(&on(map, "pauth.elf --cpu-features sve"), "no pauth", 0);
            requests_give_vectors => |map| {
                let mut guest = start_with_features(&format!("/guests/{}/sve.elf", map.name), "sve,pauth");
                guest.expect("ok sve 256 bytes");
                guest.terminate();
            };
            ticks_continue_after_restores => |map| check_ticks(map, "");
            random_numbers_follow_generation_id => |map| reseed_after_restore("/images/vmlinuz", map.console);
        }
    }
    mod virt {
        scenarios_of_map! { VIRT
            four_cpus => |map| {
                let guest = on(map, "smp.elf --cpus 4 --cpu-features sve,pauth");
                expect_exit(&guest, "ok smp 4 cpus", 0);
            };
            vectors_are_restored => |map| check_extension(map, "sve.elf", "sve,pauth", "ok sve 256 bytes");
            keys_are_restored => |map| check_extension(map, "pauth.elf", "sve,pauth", "ok pauth 5 keys");
            ticks_continue_with_realtime => |map| check_ticks(map, "--realtime");
            virtual_counter_stops_and_advances => |map| check_counters(map);
            clones_have_identities_of_their_own => |map| check_identities(map);
        }
    }
}
