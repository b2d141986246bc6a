//! Snapshot requests, as far as they need no KVM.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use vmm::config::{DriveBackend, MacAddress, NetAddresses, NetBackend, NetOverride};
use vmm::control::{
    CreateSnapshotParams, DriveCheck, LoadSnapshotParams, MemorySource, RecordOptions, SnapshotKind,
    WorkingSetOptions,
};

use super::{AFTER, BEFORE};
use crate::schema::{self, Schema, SnapshotCreate, SnapshotLoad};
use crate::testing::Fixture;

const CREATE: &str = "/snapshot/create";
const LOAD: &str = "/snapshot/load";
const CONFIGURED: &str = "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific \
                          resources.";

fn create(body: &str) -> CreateSnapshotParams {
    schema::read::<SnapshotCreate>(body.as_bytes())
        .unwrap()
        .into_params()
}

fn load(body: &str) -> LoadSnapshotParams {
    schema::read::<SnapshotLoad>(body.as_bytes())
        .unwrap()
        .into_params()
        .unwrap()
}

fn error<T: Schema + std::fmt::Debug>(body: &Value) -> String {
    schema::read::<T>(body.to_string().as_bytes())
        .unwrap_err()
        .to_string()
}

#[test]
fn create_requires_start() {
    let mut fixture = Fixture::new();
    for kind in ["Full", "Diff"] {
        let body = format!(
            r#"{{"snapshot_type": "{kind}", "snapshot_path": "@/state", "mem_file_path": "@/memory"}}"#
        );
        assert_eq!(fixture.expect_fault("PUT", CREATE, &body), BEFORE);
    }
    assert!(!std::fs::exists(fixture.at("@/state")).unwrap());
    assert_ne!(BEFORE, AFTER);
}

#[test]
fn no_request_is_executed_after_failed_load() {
    let mut fixture = Fixture::new();
    let body = r#"{"snapshot_path": "@/none", "mem_file_path": "@/none"}"#;
    let failed = fixture.expect_fault("PUT", LOAD, body);
    assert!(failed.contains("none"), "{failed}");
    let machine = r#"{"vcpu_count": 2, "mem_size_mib": 64}"#;
    for (path, body) in [(LOAD, body), ("/machine-config", machine)] {
        let rejected = fixture.expect_fault("PUT", path, body);
        assert!(
            rejected.starts_with("The snapshot was not loaded, and mayfly ends"),
            "{rejected}"
        );
    }
}

#[test]
fn load_after_configuration_is_rejected() {
    let body = r#"{"snapshot_path": "@/none", "mem_file_path": "@/none"}"#;
    for (path, config) in [
        ("/boot-source", r#"{"kernel_image_path": "@/kernel"}"#),
        ("/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 64}"#),
        // The default, which also counts as configured.
        ("/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 128}"#),
        (
            "/drives/a",
            r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "@/disk"}"#,
        ),
    ] {
        let mut fixture = Fixture::new();
        fixture.expect_no_content("PUT", path, config);
        assert_eq!(fixture.expect_fault("PUT", LOAD, body), CONFIGURED, "{path}");
    }
    let mut fixture = Fixture::new();
    fixture.expect_no_content("PATCH", "/machine-config", r#"{"vcpu_count": 1}"#);
    assert_eq!(fixture.expect_fault("PUT", LOAD, body), CONFIGURED);
    let mut fixture = Fixture::new();
    // A rejected request changes nothing.
    fixture.expect_fault(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count": 33, "mem_size_mib": 128}"#,
    );
    fixture.expect_fault("PUT", "/boot-source", r#"{"kernel_image_path": "@/none"}"#);
    fixture.expect_no_content("PUT", "/serial", r#"{"serial_out_path": "@/serial"}"#);
    fixture.expect_no_content("PUT", "/logger", r#"{"level": "Info"}"#);
    let fault = fixture.expect_fault("PUT", LOAD, body);
    assert!(
        fault.starts_with("Load snapshot error: cannot read the state file ") && fault.contains("@/none"),
        "{fault}"
    );
    assert_eq!(fixture.get("/")["state"], "Not started");
}

#[test]
fn load_requires_one_memory_source() {
    let mut fixture = Fixture::new();
    let json = "An error occurred when deserializing the json body of a request: ";
    for (body, text) in [
        (
            json!({"snapshot_path": "s"}),
            "missing field: either `mem_backend` or `mem_file_path` is required.",
        ),
        (
            json!({"snapshot_path": "s", "mem_file_path": null, "mem_backend": null}),
            "missing field: either `mem_backend` or `mem_file_path` is required.",
        ),
        (
            json!({"snapshot_path": "s", "mem_file_path": "m",
                "mem_backend": {"backend_type": "File", "backend_path": "m"}}),
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required.",
        ),
    ] {
        assert_eq!(
            fixture.expect_fault("PUT", LOAD, &body.to_string()),
            format!("{json}{text}"),
            "{body}"
        );
    }
}

#[test]
fn unsupported_load_fields_are_named() {
    let with = |field: &str, value: Value| {
        let mut body = json!({"snapshot_path": "s", "mem_file_path": "m"});
        body[field] = value;
        body
    };
    for (field, value, text) in [
        ("vsock_override", json!({}), "vsock is not part of mayfly"),
        (
            "vsock_override",
            json!({"uds_path": "/v"}),
            "vsock is not part of mayfly",
        ),
        ("huge_pages", json!("2M"), "choose Snapshot or None"),
        ("huge_pages", json!("Transparent"), "choose Snapshot or None"),
    ] {
        let error = error::<SnapshotLoad>(&with(field, value.clone()));
        assert!(
            error.starts_with(&format!("The field {field} cannot be {value}: ")) && error.contains(text),
            "{error}"
        );
    }
    for (field, value) in [
        ("vsock_override", json!(null)),
        ("huge_pages", json!(null)),
        ("huge_pages", json!("None")),
        ("huge_pages", json!("Snapshot")),
        ("network_overrides", json!(null)),
        ("drive_overrides", json!([])),
    ] {
        let body = with(field, value.clone()).to_string();
        assert_eq!(
            load(&body),
            LoadSnapshotParams::new("s".into(), "m".into()),
            "{field}: {value}"
        );
    }
}

#[test]
fn invalid_fields_are_rejected() {
    let list =
        |element: Value| json!({"snapshot_path": "s", "mem_file_path": "m", "network_overrides": element});
    for (body, text) in [
        (
            list(json!({"iface_id": "a", "host_dev_name": "b"})),
            "invalid type: map, expected a sequence",
        ),
        (
            list(json!(["a"])),
            "invalid type: string \"a\", expected struct NetworkOverride at line 1",
        ),
        // serde accepts a sequence as the fields in their order.
        (
            list(json!([["a", "b", null, null, null, null, null]])),
            "invalid type: sequence, expected an object",
        ),
        (list(json!([{"iface_id": "a"}])), "missing field `host_dev_name`"),
        (list(json!([{"host_dev_name": "a"}])), "missing field `iface_id`"),
        (
            list(json!([{"iface_id": 1, "host_dev_name": "a"}])),
            "invalid type: integer `1`, expected a string",
        ),
        (json!({"mem_file_path": "m"}), "missing field `snapshot_path`"),
        (
            json!({"snapshot_path": "s", "mem_backend": {"backend_type": "Disk", "backend_path": "m"}}),
            "unknown variant `Disk`",
        ),
        (
            json!({"snapshot_path": "s", "mem_backend": {"backend_type": "File"}}),
            "missing field `backend_path`",
        ),
        (
            json!({"snapshot_path": "s", "mem_backend": {"backend_path": "m"}}),
            "missing field `backend_type`",
        ),
    ] {
        let error = error::<SnapshotLoad>(&body);
        assert!(error.contains(text), "{body}: {error}");
    }
    for (body, text) in [
        (json!({"snapshot_path": "s"}), "missing field `mem_file_path`"),
        (json!({"mem_file_path": "m"}), "missing field `snapshot_path`"),
        (
            json!({"snapshot_path": "s", "mem_file_path": "m", "snapshot_type": "Half"}),
            "unknown variant `Half`",
        ),
    ] {
        let error = error::<SnapshotCreate>(&body);
        assert!(error.contains(text), "{body}: {error}");
    }
}

#[test]
fn all_fields_reach_vmm() {
    let body = r#"{"snapshot_path": "/s", "mem_backend": {"backend_type": "Uffd", "backend_path": "/u"},
        "track_dirty_pages": true, "resume_vm": true, "clock_realtime": true,
        "network_overrides": [{"iface_id": "a", "host_dev_name": ""}, {"iface_id": "b", "host_dev_name": "tap1"},
            {"iface_id": "g", "host_dev_name": "tap2", "guest_ip": "10.0.0.2", "ip": "10.0.7.1", "pass": "ipv6",
            "guest_mac": "02:00:00:00:00:01", "mac": "02:00:00:00:07:01"}],
        "drive_overrides": [{"drive_id": "c", "path_on_host": "/d"},
            {"drive_id": "e", "path_on_host": "/f", "is_read_only": true}], "untrusted": true, "check_drives": true, "mask_cpu": true,
        "working_set": "/w", "record_working_set": {"path": "/r", "milliseconds": 7}}"#;
    let read_only = DriveBackend {
        path: "/f".into(),
        read_only: true,
    };
    let with_addresses = NetOverride {
        backend: NetBackend::Tap("tap2".into()),
        addresses: Some(NetAddresses {
            guest_ip: [10, 0, 0, 2].into(),
            ip: [10, 0, 7, 1].into(),
            guest_mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
            mac: Some(MacAddress([2, 0, 0, 0, 7, 1])),
            pass_ipv6: true,
        }),
        ..NetBackend::Tap(String::new()).into()
    };
    let expected = LoadSnapshotParams {
        generations: None,
        first_frames: Vec::new(),
        state: "/s".into(),
        memory: MemorySource::Uffd("/u".into()),
        overrides: vec![
            ("a".into(), NetBackend::Tap(String::new()).into()),
            ("b".into(), NetBackend::Tap("tap1".into()).into()),
            ("g".into(), with_addresses.into()),
            ("c".into(), PathBuf::from("/d").into()),
            ("e".into(), read_only.into()),
        ],
        track_dirty_pages: true,
        resume: true,
        realtime: true,
        working_set: WorkingSetOptions {
            prefetch: Some("/w".into()),
            record: Some(RecordOptions {
                path: "/r".into(),
                length: Duration::from_millis(7),
            }),
        },
        untrusted: true,
        drive_check: DriveCheck::Reject,
        mask_cpu: true,
    };
    assert_eq!(load(body), expected);
    let short = r#"{"snapshot_path": "/s", "mem_file_path": "/m", "record_working_set": {"path": "/r"}}"#;
    let record = load(short).working_set.record.unwrap();
    assert_eq!(record.length, Duration::from_millis(100));
    assert!(!load(short).resume);
    let diff = r#"{"snapshot_type": "Diff", "snapshot_path": "/s", "mem_file_path": "/m"}"#;
    assert_eq!(create(diff).kind, SnapshotKind::Diff);
}

#[test]
fn old_field_names_are_equivalent() {
    let old = r#"{"snapshot_path": "/s", "mem_file_path": "/m", "enable_diff_snapshots": true}"#;
    let new = r#"{"snapshot_path": "/s", "mem_backend": {"backend_type": "File", "backend_path": "/m"},
        "track_dirty_pages": true}"#;
    assert_eq!(load(old), load(new));
    let deprecated = |body: &str| {
        schema::read::<SnapshotLoad>(body.as_bytes())
            .unwrap()
            .is_deprecated()
    };
    assert!(deprecated(old) && !deprecated(new));
    let versioned = r#"{"snapshot_path": "/s", "mem_file_path": "/m", "version": "1.0.0"}"#;
    assert_eq!(
        create(versioned),
        create(r#"{"snapshot_path": "/s", "mem_file_path": "/m", "snapshot_type": null}"#)
    );
}

/// Bodies of urunc's checkpoints, of flintlock through the SDK, and of vHive.
#[test]
fn client_bodies_are_accepted() {
    let full = |state: &str, memory: &str| CreateSnapshotParams {
        kind: SnapshotKind::Full,
        state: state.into(),
        memory: memory.into(),
    };
    let urunc = "{\"snapshot_type\":\"Full\",\"snapshot_path\":\"/urunc-snapshot/vmstate\",\
                 \"mem_file_path\":\"/urunc-snapshot/memory\"}";
    assert_eq!(
        create(urunc),
        full("/urunc-snapshot/vmstate", "/urunc-snapshot/memory")
    );
    let flintlock = r#"{"mem_file_path":"/vm/snapshot/memory","snapshot_path":"/vm/snapshot/vmstate"}"#;
    assert_eq!(
        create(flintlock),
        full("/vm/snapshot/vmstate", "/vm/snapshot/memory")
    );

    let urunc = "{\"snapshot_path\":\"/urunc-snapshot/vmstate\",\"mem_backend\":{\"backend_type\":\"File\",\
                 \"backend_path\":\"/urunc-snapshot/memory\"},\"resume_vm\":true,\"network_overrides\":[{\
                 \"iface_id\":\"net1\",\"host_dev_name\":\"tap1_urunc\"}]}";
    let expected = LoadSnapshotParams {
        overrides: vec![("net1".into(), NetBackend::Tap("tap1_urunc".into()).into())],
        resume: true,
        ..LoadSnapshotParams::new("/urunc-snapshot/vmstate".into(), "/urunc-snapshot/memory".into())
    };
    assert_eq!(load(urunc), expected);
    let sdk = r#"{"enable_diff_snapshots":false,"mem_file_path":"/m","resume_vm":true,"snapshot_path":"/s"}"#;
    let expected = LoadSnapshotParams {
        resume: true,
        ..LoadSnapshotParams::new("/s".into(), "/m".into())
    };
    assert_eq!(load(sdk), expected);
    let vhive = r#"{"mem_backend":{"backend_path":"/u.sock","backend_type":"Uffd"},"snapshot_path":"/s"}"#;
    let expected = LoadSnapshotParams {
        memory: MemorySource::Uffd("/u.sock".into()),
        ..LoadSnapshotParams::new("/s".into(), "".into())
    };
    assert_eq!(load(vhive), expected);
}
