//! What can be asked for before there is a guest. What comes after needs KVM, and is tested with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use scratch::Temporary;

use super::{Control, Error, InstanceState, MachineConfig};
use crate::config::{DriveConfig, MemorySize, NetConfig, RateLimits, Root};
use crate::timeline::Timeline;

fn control() -> Control {
    let timeline = Arc::new(Timeline::new(Instant::now(), true));
    Control::new(Box::new(|| unreachable!("nothing is started")), timeline)
}

fn disk() -> Temporary {
    Temporary::with(&[0; 512])
}

fn drive(disk: &Temporary, id: &str, root: Option<Root>) -> DriveConfig {
    let text = format!("{},id={id}", disk.path().display());
    DriveConfig {
        root,
        ..text.parse().unwrap()
    }
}

const MACHINE: MachineConfig = MachineConfig {
    vcpus: 2,
    memory: MemorySize::from_bytes(64 << 20),
    track_dirty_pages: true,
    huge_pages: false,
};

#[test]
fn a_machine_that_cannot_be_changes_nothing() {
    let mut control = control();
    control.set_machine(MACHINE).unwrap();
    let memory = MemorySize::from_bytes(1 << 60);
    for wrong in [
        MachineConfig { vcpus: 33, ..MACHINE },
        MachineConfig { memory, ..MACHINE },
    ] {
        assert!(matches!(control.set_machine(wrong), Err(Error::Config(_))));
    }
    let config = control.config();
    assert_eq!(
        (config.vcpus, config.memory, config.track_dirty_pages),
        (2, MACHINE.memory, true)
    );
}

#[test]
fn a_guest_needs_an_image() {
    let mut control = control();
    assert!(matches!(control.start(), Err(Error::NoKernel)));
    let missing = control.set_boot("/nowhere/kernel".into(), None, String::new());
    let said = crate::ErrorChain(&missing.unwrap_err()).to_string();
    assert!(said.contains("/nowhere/kernel"), "{said}");
    assert!(!control.has_kernel() && control.config().kernel == Path::new(""));
    assert_eq!(control.state(), InstanceState::NotStarted);
}

#[test]
fn a_drive_is_replaced_by_one_of_its_name_and_the_root_is_the_first() {
    let (one, two, three) = (disk(), disk(), disk());
    let mut control = control();
    control.put_drive(drive(&one, "a", None)).unwrap();
    control.put_drive(drive(&two, "b", Some(Root::First))).unwrap();
    // The same file again: it must not be in its own way.
    control.put_drive(drive(&one, "a", None)).unwrap();
    // A file that another drive holds is refused, and so is a second root; what was there stays.
    assert!(matches!(
        control.put_drive(drive(&two, "c", None)),
        Err(Error::Device(_))
    ));
    assert!(matches!(
        control.put_drive(drive(&three, "c", Some(Root::First))),
        Err(Error::Config(_))
    ));
    control.put_drive(drive(&three, "a", None)).unwrap();
    let drives = &control.config().drives;
    let named: Vec<_> = drives
        .iter()
        .map(|drive| (drive.disk.id.as_str(), drive.disk.path.as_path()))
        .collect();
    assert_eq!(named, [("b", two.path()), ("a", three.path())]);
    assert_eq!(drives[0].root_argument().as_deref(), Some("root=/dev/vda rw"));
    // What a replaced drive held is free again.
    control.put_drive(drive(&one, "c", None)).unwrap();
}

#[test]
fn two_interfaces_have_two_addresses() {
    let mut control = control();
    let socket = Temporary::missing();
    let _served = std::os::unix::net::UnixListener::bind(socket.path()).unwrap();
    let net = |id: &str, mac: &str| -> NetConfig {
        format!("unix:{},id={id}{mac}", socket.path().display())
            .parse()
            .unwrap()
    };
    control.put_interface(net("a", ",mac=02:00:00:00:00:01")).unwrap();
    let twice = control.put_interface(net("b", ",mac=02:00:00:00:00:01"));
    assert!(matches!(twice, Err(Error::Config(_))));
    control.put_interface(net("b", "")).unwrap();
    // The same one again with its own address is no second one.
    control.put_interface(net("a", ",mac=02:00:00:00:00:01")).unwrap();
    let nets = &control.config().nets;
    assert_eq!(nets.len(), 2);
    assert!(nets[1].mac.is_some() && nets[1].mac != nets[0].mac);
}

#[test]
fn what_needs_a_guest_is_refused_without_one() {
    let mut control = control();
    let none = RateLimits::default();
    assert!(matches!(control.pause(), Err(Error::BeforeStart)));
    assert!(matches!(control.resume(), Err(Error::BeforeStart)));
    assert!(matches!(
        control.update_drive("a", None, none),
        Err(Error::BeforeStart)
    ));
    assert!(matches!(
        control.update_interface("a", none, none),
        Err(Error::BeforeStart)
    ));
    let metrics = control.metrics();
    assert!(metrics.vcpus.is_empty() && metrics.resident.is_some_and(|bytes| bytes > 0));
}
