//! Suspend before the start: settings and their rejection. A suspend needs KVM.

use serde_json::{Value, json};

use super::BEFORE;
use crate::testing::Fixture;

fn info(fixture: &mut Fixture) -> Value {
    let response = fixture.request("GET", "/scale-to-zero", b"");
    assert_eq!(response.status(), 200);
    serde_json::from_slice(response.body()).unwrap()
}

#[test]
fn settings_are_returned() {
    let mut fixture = Fixture::new();
    let default = info(&mut fixture);
    assert_eq!(
        default,
        json!({
            "policy": "off", "cooldown_time_ms": 1000, "idle_cpu_percent": 5, "stateful": true, "snapshot_path": null,
            "mem_file_path": null, "snapshot_dir": null, "state": "Off", "state_ms": default["state_ms"], "reason": null,
            "error": null
        })
    );
    for body in [
        json!({"policy": "idle", "cooldown_time_ms": 7, "idle_cpu_percent": 100, "stateful": true,
            "snapshot_path": "/s", "mem_file_path": "/m"}),
        json!({"policy": "off", "cooldown_time_ms": 86_400_000, "idle_cpu_percent": 1, "stateful": false,
            "snapshot_path": null, "mem_file_path": null}),
    ] {
        fixture.expect_no_content("PUT", "/scale-to-zero", &body.to_string());
        let info = info(&mut fixture);
        for (key, value) in body.as_object().unwrap() {
            assert_eq!(&info[key], value, "{key}");
        }
    }
    // Absent fields have their defaults again.
    fixture.expect_no_content("PUT", "/scale-to-zero", r#"{"policy": "off"}"#);
    let mut last = info(&mut fixture);
    last["state_ms"] = default["state_ms"].clone();
    assert_eq!(last, default);
}

#[test]
fn invalid_settings_change_nothing() {
    let mut fixture = Fixture::new();
    let valid = r#"{"policy": "idle", "cooldown_time_ms": 7, "stateful": false}"#;
    fixture.expect_no_content("PUT", "/scale-to-zero", valid);
    for (body, text) in [
        (
            r#"{"policy": "idle"}"#,
            "Suspend error: cannot suspend the VM: no place for its snapshot is set; set one by snapshot_path and mem_file_path, or \
             start mayfly with --suspend-to",
        ),
        (
            r#"{"policy": "off", "snapshot_path": "/s"}"#,
            "Invalid mem_file_path: it is missing; set both paths, or none.",
        ),
        (
            r#"{"policy": "off", "mem_file_path": "/m"}"#,
            "Invalid snapshot_path: it is missing; set both paths, or none.",
        ),
        (
            r#"{"policy": "off", "cooldown_time_ms": 0}"#,
            "Invalid cooldown_time_ms: 0 is not in the range from 1 to 86400000.",
        ),
        (
            r#"{"policy": "off", "idle_cpu_percent": 101}"#,
            "Invalid idle_cpu_percent: 101 is not in the range from 1 to 100.",
        ),
    ] {
        assert_eq!(fixture.expect_fault("PUT", "/scale-to-zero", body), text);
    }
    let text = fixture.expect_fault("PUT", "/scale-to-zero", r#"{"policy": "on"}"#);
    assert!(text.contains("unknown variant `on`"), "{text}");
    assert_eq!(info(&mut fixture)["cooldown_time_ms"], 7);
}

#[test]
fn actions_require_started_vm() {
    let mut fixture = Fixture::new();
    for action in ["Ready", "Suspend"] {
        let body = json!({ "action": action }).to_string();
        assert_eq!(fixture.expect_fault("PATCH", "/scale-to-zero", &body), BEFORE);
    }
    assert_eq!(
        fixture.expect_fault("PATCH", "/scale-to-zero", r#"{"action": "Cancel"}"#),
        "Suspend error: cannot cancel the suspend: the VM does not suspend"
    );
}

#[test]
fn settings_are_a_section_of_the_configuration_file() {
    let mut fixture = Fixture::new();
    let file = r#"{"scale-to-zero": {"policy": "idle", "stateful": false},
        "boot-source": {"kernel_image_path": "@/kernel"}}"#;
    let text = fixture.at(file);
    fixture.api.apply(&mut fixture.control, &text).unwrap();
    assert_eq!(info(&mut fixture)["policy"], "idle");
}
