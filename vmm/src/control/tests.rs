//! What can be asked for before there is a guest. What comes after needs KVM, and is tested with it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::{Control, Error, MachineConfig, State};
use crate::config::{DriveConfig, Limits, MemorySize, NetConfig, Root};
use crate::timeline::Timeline;

fn control() -> Control {
    let timeline = Arc::new(Timeline::new(Instant::now(), true));
    Control::new(Box::new(|| unreachable!("nothing is started")), timeline)
}

struct Disk(PathBuf);

impl Disk {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mayfly-control-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(512).unwrap();
        Self(path)
    }

    fn drive(&self, id: &str, root: Option<Root>) -> DriveConfig {
        let text = format!("{},id={id}", self.0.display());
        DriveConfig {
            root,
            ..text.parse().unwrap()
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
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
    let said = crate::Chain(&missing.unwrap_err()).to_string();
    assert!(said.contains("/nowhere/kernel"), "{said}");
    assert!(!control.has_kernel() && control.config().kernel == Path::new(""));
    assert_eq!(control.state(), State::NotStarted);
}

#[test]
fn a_drive_is_replaced_by_one_of_its_name_and_the_root_is_the_first() {
    let (one, two, three) = (Disk::new("one"), Disk::new("two"), Disk::new("three"));
    let mut control = control();
    control.put_drive(one.drive("a", None)).unwrap();
    control.put_drive(two.drive("b", Some(Root::First))).unwrap();
    // The same file again: it must not be in its own way.
    control.put_drive(one.drive("a", None)).unwrap();
    // A file that another drive holds is refused, and so is a second root; what was there stays.
    assert!(matches!(
        control.put_drive(two.drive("c", None)),
        Err(Error::Device(_))
    ));
    assert!(matches!(
        control.put_drive(three.drive("c", Some(Root::First))),
        Err(Error::Config(_))
    ));
    control.put_drive(three.drive("a", None)).unwrap();
    let drives = &control.config().drives;
    let named: Vec<_> = drives
        .iter()
        .map(|drive| (drive.disk.id.as_str(), &drive.disk.path))
        .collect();
    assert_eq!(named, [("b", &two.0), ("a", &three.0)]);
    assert_eq!(drives[0].root_argument().as_deref(), Some("root=/dev/vda rw"));
    // What a replaced drive held is free again.
    control.put_drive(one.drive("c", None)).unwrap();
}

#[test]
fn two_interfaces_have_two_addresses() {
    let mut control = control();
    let listener = std::env::temp_dir().join(format!("mayfly-control-{}-net", std::process::id()));
    let _served = std::os::unix::net::UnixListener::bind(&listener).unwrap();
    let net = |id: &str, mac: &str| -> NetConfig {
        format!("unix:{},id={id}{mac}", listener.display())
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
    std::fs::remove_file(listener).unwrap();
}

#[test]
fn what_needs_a_guest_is_refused_without_one() {
    let mut control = control();
    let none = Limits::default();
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
