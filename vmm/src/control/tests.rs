//! Tests of the requests before the start. The requests after it need KVM.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use scratch::Temporary;

use super::{Control, Error, InstanceState, MachineConfig};
use crate::config::{
    CpuFeatures, DeviceUpdate, DriveConfig, DriveUpdate, InterfaceUpdate, MemorySize, NetConfig, Root,
};
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

fn machine() -> MachineConfig {
    MachineConfig {
        vcpus: 2,
        smt: false,
        memory: MemorySize::from_bytes(64 << 20),
        track_dirty_pages: true,
        huge_pages: false,
        cpu_features: CpuFeatures::default(),
    }
}

#[test]
fn processor_features_of_other_architecture_change_nothing() {
    let mut control = control();
    let with = |names: &str| MachineConfig {
        cpu_features: names.parse().unwrap(),
        ..machine()
    };
    let [own, foreign] = match std::env::consts::ARCH {
        "x86_64" => ["virtualization", "sve"],
        _ => ["sve", "virtualization"],
    };
    control.set_machine(with(own)).unwrap();
    let error = control.set_machine(with(foreign)).unwrap_err();
    let message = crate::ErrorChain(&error).to_string();
    assert!(message.contains("the processor features"), "{message}");
    assert_eq!(control.config().cpu_features.to_string(), own);
    control.set_machine(machine()).unwrap();
    assert_eq!(control.config().cpu_features, CpuFeatures::default());
}

#[test]
fn invalid_machine_config_changes_nothing() {
    let mut control = control();
    control.set_machine(machine()).unwrap();
    let memory = MemorySize::from_bytes(1 << 60);
    for wrong in [
        MachineConfig {
            vcpus: 33,
            ..machine()
        },
        MachineConfig { memory, ..machine() },
        MachineConfig {
            vcpus: 3,
            smt: true,
            ..machine()
        },
    ] {
        assert!(matches!(control.set_machine(wrong), Err(Error::Config(_))));
    }
    let config = control.config();
    assert_eq!(
        (config.vcpus, config.memory, config.track_dirty_pages),
        (2, machine().memory, true)
    );
}

#[test]
fn start_without_image_fails() {
    let mut control = control();
    assert!(matches!(control.start(), Err(Error::NoKernel)));
    let missing = control.set_boot("/nowhere/kernel".into(), None, String::new(), None);
    let message = crate::ErrorChain(&missing.unwrap_err()).to_string();
    assert!(message.contains("/nowhere/kernel"), "{message}");
    assert!(!control.has_kernel() && control.config().kernel == Path::new(""));
    assert_eq!(control.state(), InstanceState::NotStarted);
}

/// Adds `drive` once its disk is not locked: a child that another test starts keeps the lock of a closed disk until its `execve`.
fn replace(control: &mut Control, drive: &DriveConfig) {
    scratch::wait_until("the lock of a disk", || {
        let result = control.put_device(drive.clone());
        let is_locked = matches!(result, Err(Error::Device(_)));
        assert!(is_locked || result.is_ok(), "{result:?}");
        !is_locked
    });
}

#[test]
fn drive_with_known_id_is_replaced_and_root_is_first() {
    let (one, two, three) = (disk(), disk(), disk());
    let mut control = control();
    control.put_device(drive(&one, "a", None)).unwrap();
    control.put_device(drive(&two, "b", Some(Root::First))).unwrap();
    // The same file again: the lock of the replaced drive must be released first.
    replace(&mut control, &drive(&one, "a", None));
    // A file locked by another drive and a second root are rejected, and the drives stay.
    assert!(matches!(
        control.put_device(drive(&two, "c", None)),
        Err(Error::Device(_))
    ));
    assert!(matches!(
        control.put_device(drive(&three, "c", Some(Root::First))),
        Err(Error::Config(_))
    ));
    replace(&mut control, &drive(&three, "a", None));
    let drives: Vec<_> = control.config().drives().collect();
    let named: Vec<_> = drives
        .iter()
        .map(|drive| (drive.disk.id.as_str(), drive.disk.path.as_path()))
        .collect();
    assert_eq!(named, [("b", two.path()), ("a", three.path())]);
    assert_eq!(drives[0].root_argument().as_deref(), Some("root=/dev/vda rw"));
    // The lock of a replaced drive is released.
    replace(&mut control, &drive(&one, "c", None));
}

#[test]
fn interfaces_have_different_addresses() {
    let mut control = control();
    let socket = Temporary::missing();
    let _listener = std::os::unix::net::UnixListener::bind(socket.path()).unwrap();
    let net = |id: &str, mac: &str| -> NetConfig {
        format!("unix:{},id={id}{mac}", socket.path().display())
            .parse()
            .unwrap()
    };
    control.put_device(net("a", ",mac=02:00:00:00:00:01")).unwrap();
    let twice = control.put_device(net("b", ",mac=02:00:00:00:00:01"));
    assert!(matches!(twice, Err(Error::Config(_))));
    control.put_device(net("b", "")).unwrap();
    // The address of a replaced interface is not a duplicate.
    control.put_device(net("a", ",mac=02:00:00:00:00:01")).unwrap();
    let nets: Vec<_> = control.config().interfaces().collect();
    assert_eq!(nets.len(), 2);
    assert!(nets[1].mac.is_some() && nets[1].mac != nets[0].mac);
}

#[test]
fn guest_requests_fail_before_start() {
    let mut control = control();
    assert!(matches!(control.pause(), Err(Error::BeforeStart)));
    assert!(matches!(control.resume(), Err(Error::BeforeStart)));
    for update in [
        DeviceUpdate::Drive(DriveUpdate::default()),
        DeviceUpdate::Interface(InterfaceUpdate::default()),
    ] {
        let updated = control.update_device("a".to_owned(), update);
        assert!(matches!(updated, Err(Error::BeforeStart)));
    }
    let metrics = control.metrics();
    assert!(metrics.vcpus.is_empty() && metrics.resident.is_some_and(|bytes| bytes > 0));
}
