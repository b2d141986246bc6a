use proptest::prelude::{any, prop_assert_eq, proptest};
use snapshot::Persist;

use super::{Chip, Pic};
use crate::testing::check_round_trip;

const MASTER: u8 = 0x20;
const SLAVE: u8 = 0x28;

/// Initialises the pair as Linux and Unikraft do, without masked lines.
fn initialised(icw4: u8) -> Pic {
    let mut pic = Pic::new();
    for (chip, base, icw3) in [(Chip::Master, MASTER, 0x04), (Chip::Slave, SLAVE, 0x02)] {
        pic.write(chip, 0, 0x11);
        pic.write(chip, 1, base);
        pic.write(chip, 1, icw3);
        pic.write(chip, 1, icw4);
        pic.write(chip, 1, 0);
    }
    pic
}

fn pulse(pic: &mut Pic, line: u8) {
    pic.set_level(line, true);
    pic.set_level(line, false);
}

fn in_service(pic: &mut Pic, chip: Chip) -> u8 {
    pic.write(chip, 0, 0x0b);
    pic.read(chip, 0)
}

fn requests(pic: &mut Pic, chip: Chip) -> u8 {
    pic.write(chip, 0, 0x0a);
    pic.read(chip, 0)
}

#[test]
fn uninitialised_pair_is_masked_and_can_be_probed() {
    let mut pic = Pic::new();
    pulse(&mut pic, 0);
    assert!(!pic.is_pending());
    // Probe of Linux for the pair.
    pic.write(Chip::Slave, 1, 0xff);
    pic.write(Chip::Master, 1, 0xfb);
    assert_eq!(pic.read(Chip::Master, 1), 0xfb);
}

#[test]
fn initialisation_clears_edges_and_blocks_interrupts() {
    let mut pic = initialised(0x01);
    pulse(&mut pic, 3);
    pic.write(Chip::Master, 0, 0x11);
    assert!(!pic.is_pending(), "ICW1 clears edges");
    pulse(&mut pic, 4);
    pic.write(Chip::Master, 1, 0x40);
    pic.write(Chip::Master, 1, 0x04);
    assert!(!pic.is_pending(), "ICW4 is missing");
    pic.write(Chip::Master, 1, 0x01);
    assert_eq!(pic.acknowledge(), 0x44);
}

#[test]
fn single_mode_skips_icw3_and_icw4() {
    let mut pic = Pic::new();
    pic.write(Chip::Master, 0, 0x12);
    pic.write(Chip::Master, 1, 0x37);
    pic.write(Chip::Master, 1, 0xfe);
    assert_eq!(pic.read(Chip::Master, 1), 0xfe, "the second word is the mask");
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn edge_is_delivered_once() {
    let mut pic = initialised(0x01);
    pic.set_level(4, true);
    assert!(pic.is_pending());
    assert_eq!(pic.acknowledge(), MASTER + 4);
    assert!(!pic.is_pending());
    pic.write(Chip::Master, 0, 0x20);
    assert!(!pic.is_pending());
    pic.set_level(4, false);
    pic.set_level(4, true);
    assert!(pic.is_pending());
}

#[test]
fn level_is_delivered_until_line_falls() {
    let mut pic = initialised(0x01);
    pic.set_level_triggered(Chip::Master, 0xff);
    pic.set_level_triggered(Chip::Slave, 0xff);
    assert_eq!(pic.level_triggered(Chip::Master), 0xf8);
    assert_eq!(pic.level_triggered(Chip::Slave), 0xde);
    for (line, vector) in [(5, MASTER + 5), (11, SLAVE + 3)] {
        pic.set_level(line, true);
        for _ in 0..2 {
            assert_eq!(pic.acknowledge(), vector);
            assert!(!pic.is_pending());
            pic.write(Chip::Slave, 0, 0x20);
            pic.write(Chip::Master, 0, 0x20);
            assert!(pic.is_pending());
        }
        pic.set_level(line, false);
        assert!(!pic.is_pending());
    }
}

#[test]
fn lost_request_is_spurious() {
    let mut pic = initialised(0x01);
    pulse(&mut pic, 3);
    pic.write(Chip::Master, 1, 0xff);
    assert!(!pic.is_pending());
    assert_eq!(pic.acknowledge(), MASTER + 7);
    assert_eq!(in_service(&mut pic, Chip::Master), 0);
}

#[test]
fn slave_interrupt_needs_two_ends() {
    let mut pic = initialised(0x01);
    pulse(&mut pic, 14);
    assert_eq!(requests(&mut pic, Chip::Master), 0x04);
    assert_eq!(requests(&mut pic, Chip::Slave), 0x40);
    assert_eq!(pic.acknowledge(), SLAVE + 6);
    assert_eq!(in_service(&mut pic, Chip::Master), 0x04);
    assert_eq!(in_service(&mut pic, Chip::Slave), 0x40);
    pulse(&mut pic, 15);
    pulse(&mut pic, 8);
    assert!(!pic.is_pending(), "line 2 of the master is in service");
    pic.write(Chip::Master, 0, 0x62);
    assert_eq!(pic.acknowledge(), SLAVE, "line 8 is above line 14");
    pic.write(Chip::Slave, 0, 0x20);
    pic.write(Chip::Master, 0, 0x20);
    assert_eq!(in_service(&mut pic, Chip::Slave), 0x40, "line 14 is in service");
    assert!(!pic.is_pending());
    pic.write(Chip::Slave, 0, 0x20);
    assert_eq!(pic.acknowledge(), SLAVE + 7);
}

#[test]
fn special_fully_nested_mode_nests_slave() {
    let mut pic = initialised(0x11);
    pulse(&mut pic, 14);
    assert_eq!(pic.acknowledge(), SLAVE + 6);
    pulse(&mut pic, 3);
    assert!(!pic.is_pending(), "line 3 is below the slave");
    pulse(&mut pic, 9);
    assert_eq!(pic.acknowledge(), SLAVE + 1);
}

#[test]
fn higher_line_interrupts_lower_line() {
    let mut pic = initialised(0x01);
    pulse(&mut pic, 4);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), MASTER + 4);
    assert!(!pic.is_pending());
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), MASTER + 1);
    pic.write(Chip::Master, 0, 0x20);
    assert_eq!(
        in_service(&mut pic, Chip::Master),
        0x10,
        "the end applies to line 1"
    );
    pic.write(Chip::Master, 0, 0x64);
    assert_eq!(pic.acknowledge(), MASTER + 6);
}

#[test]
fn automatic_end_of_interrupt_can_rotate() {
    let mut pic = initialised(0x03);
    pulse(&mut pic, 0);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), MASTER);
    assert_eq!(in_service(&mut pic, Chip::Master), 0);
    pic.write(Chip::Master, 0, 0x80);
    assert_eq!(pic.acknowledge(), MASTER + 1);
    pulse(&mut pic, 0);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), MASTER + 3, "line 1 is lowest, line 2 highest");
}

#[test]
fn rotation_makes_ended_line_lowest() {
    let mut pic = initialised(0x01);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), MASTER + 4);
    pic.write(Chip::Master, 0, 0xa0);
    pulse(&mut pic, 4);
    pulse(&mut pic, 3);
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), MASTER + 5);
    pic.write(Chip::Master, 0, 0xe5);
    pic.write(Chip::Master, 0, 0xc3);
    assert_eq!(pic.acknowledge(), MASTER + 4, "line 3 is lowest");
}

#[test]
fn poll_mode_read_acknowledges() {
    let mut pic = initialised(0x01);
    pic.write(Chip::Master, 0, 0x0c);
    assert_eq!(pic.read(Chip::Master, 0), 0);
    pulse(&mut pic, 6);
    pic.write(Chip::Master, 0, 0x0c);
    assert_eq!(pic.read(Chip::Master, 1), 0x86);
    assert_eq!(pic.read(Chip::Master, 1), 0, "a poll applies to one read");
    assert_eq!(in_service(&mut pic, Chip::Master), 0x40);
}

#[test]
fn special_mask_mode_unblocks_lower_lines() {
    let mut pic = initialised(0x01);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), MASTER + 3);
    pulse(&mut pic, 5);
    pic.write(Chip::Master, 1, 0x08);
    assert!(!pic.is_pending());
    pic.write(Chip::Master, 0, 0x68);
    assert_eq!(pic.acknowledge(), MASTER + 5);
    pic.write(Chip::Master, 0, 0x20);
    assert_eq!(
        in_service(&mut pic, Chip::Master),
        0x08,
        "a non-specific end skips masked lines"
    );
    pic.write(Chip::Master, 0, 0x48);
    pulse(&mut pic, 5);
    assert!(!pic.is_pending());
}

#[test]
fn state_round_trips_and_swapped_chips_are_rejected() {
    let mut pic = initialised(0x01);
    pulse(&mut pic, 14);
    pic.acknowledge();
    pulse(&mut pic, 1);

    let state = pic.save().unwrap();
    let mut swapped = state.clone();
    std::mem::swap(&mut swapped.master, &mut swapped.slave);
    assert!(Pic::new().restore(swapped).is_err());
    let mut restored = Pic::new();
    restored.restore(state).unwrap();
    assert_eq!(restored.acknowledge(), MASTER + 1);
}

proptest! {
    #[test]
    fn any_access_is_safe(steps in proptest::collection::vec((0_u8..8, 0_u8..20, any::<u8>()), 0..128)) {
        let mut pic = Pic::new();
        for (action, line, value) in steps {
            let chip = if value & 1 == 0 { Chip::Master } else { Chip::Slave };
            match action {
                0 => pic.set_level(line, true),
                1 => pic.set_level(line, false),
                2 => {
                    let pending = pic.is_pending();
                    let before = pic.save().unwrap();
                    pic.acknowledge();
                    prop_assert_eq!(pending, pic.save().unwrap() != before || pic.is_pending());
                }
                3 => { pic.read(chip, u64::from(line) & 1); }
                4 => pic.set_level_triggered(chip, value),
                _ => pic.write(chip, u64::from(line) & 1, value),
            }
        }
        check_round_trip(&pic, Pic::new);
    }
}
