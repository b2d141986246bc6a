//! Requests before the start. Requests after it require KVM, and are tested in `tests/local`.

mod clients;
mod scale_to_zero;
mod snapshot;
mod specification;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_oneof, proptest};
use serde_json::{Value, json};

use super::ROUTES;
use crate::testing::{Fixture, specification as yaml};

const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
const AFTER: &str = "The requested operation is not supported after starting the microVM.";

#[test]
fn unknown_routes_are_rejected() {
    let mut fixture = Fixture::new();
    for (method, path, body, text) in [
        (
            "PUT",
            "/foo",
            "{}",
            "Invalid request method and/or path: PUT foo.",
        ),
        (
            "GET",
            "/foo/bar",
            "",
            "Invalid request method and/or path: GET foo/bar.",
        ),
        ("HEAD", "/", "", "Invalid request method and/or path: HEAD ."),
        // Firecracker has no status 405.
        ("TRACE", "/", "", "Invalid request method and/or path: TRACE ."),
        ("PUT", "/", "{}", "Invalid request method and/or path: PUT ."),
        (
            "DELETE",
            "/vm",
            "",
            "Invalid request method and/or path: DELETE vm.",
        ),
        (
            "PATCH",
            "vm",
            r#"{"state":"Paused"}"#,
            "Invalid request method and/or path: PATCH .",
        ),
        ("PUT", "*", "{}", "Invalid request method and/or path: PUT ."),
        (
            "PUT",
            "/drives/a/b",
            "{}",
            "Invalid request method and/or path: PUT drives/a/b.",
        ),
        (
            "PUT",
            "/drivesa",
            "{}",
            "Invalid request method and/or path: PUT drivesa.",
        ),
        (
            "GET",
            "/machine-config/",
            "",
            "Invalid request method and/or path: GET machine-config/.",
        ),
    ] {
        assert_eq!(fixture.expect_fault(method, path, body), text);
    }
}

#[test]
fn body_presence_is_checked() {
    let mut fixture = Fixture::new();
    for (method, path, body, text) in [
        ("GET", "/", "{}", "GET request cannot have a body."),
        ("DELETE", "/drives/a", "{}", "DELETE request cannot have a body."),
        ("PUT", "/machine-config", "", "Empty PUT request."),
        ("PATCH", "/vm", "", "Empty PATCH request."),
        ("PATCH", "/machine-config", "{}", "Empty PATCH request."),
        (
            "PATCH",
            "/machine-config",
            r#"{"smt": null, "x": 1}"#,
            "Empty PATCH request.",
        ),
        ("PUT", "/drives", "{}", "The ID cannot be empty."),
        ("PUT", "/drives/", "{}", "The ID cannot be empty."),
        ("DELETE", "/network-interfaces/", "", "The ID cannot be empty."),
        (
            "PUT",
            "/actions",
            "{}",
            "An error occurred when deserializing the json body of a request: missing field `action_type` at line 1 \
             column 2.",
        ),
    ] {
        assert_eq!(fixture.expect_fault(method, path, body), text);
    }
    assert!(
        fixture
            .expect_fault("PUT", "/vm", "{}")
            .starts_with("Invalid request")
    );
}

#[test]
fn ids_in_path_and_body_match() {
    let mut fixture = Fixture::new();
    let mut put = |path: &str, id: &str| {
        let body = format!(r#"{{"drive_id": "{id}", "is_root_device": false, "path_on_host": "@/disk"}}"#);
        let response = fixture.request("PUT", path, fixture.at(&body).as_bytes());
        String::from_utf8_lossy(response.body()).into_owned()
    };
    assert_eq!(put("/drives/a-b_c.1:2", "a-b_c.1:2"), "");
    assert!(put("/drives/a", "b").contains("The id from the path does not match the id from the body!"));
    assert!(put("/drives/a", "").contains("The id from the path does not match the id from the body!"));
    for invalid in ["a b", "\u{e9}", "a\\u0000", "{}"] {
        let path = format!("/drives/{}", invalid.replace("\\u0000", "\0"));
        assert!(
            put(&path, invalid).contains("API Resource IDs can only contain"),
            "{invalid}"
        );
    }
}

#[test]
fn ids_of_interface_are_in_rejection() {
    let mut fixture = Fixture::new();
    for (method, body) in [
        ("PUT", r#"{"iface_id": "b", "host_dev_name": "tap"}"#),
        ("PATCH", r#"{"iface_id": "b"}"#),
    ] {
        assert_eq!(
            fixture.expect_fault(method, "/network-interfaces/a", body),
            "The id from the path [a] does not match the id from the body [b]!"
        );
    }
}

#[test]
fn unsupported_features_are_named() {
    let mut fixture = Fixture::new();
    for (method, path, text) in [
        ("PUT", "/balloon", "The balloon is not part of mayfly."),
        ("GET", "/balloon/statistics", "The balloon is not part of mayfly."),
        (
            "PATCH",
            "/balloon/hinting/start",
            "The balloon is not part of mayfly.",
        ),
        ("PUT", "/entropy", "The entropy device is not part of mayfly."),
        ("GET", "/mmds", "MMDS is not part of mayfly."),
        ("PUT", "/mmds/config", "MMDS is not part of mayfly."),
        ("DELETE", "/pmem/a", "Pmem devices are not part of mayfly."),
        ("PUT", "/hotplug/memory", "Memory hot-plug is not part of mayfly."),
        ("PUT", "/cpu-config", "CPU configuration is not part of mayfly."),
        ("GET", "/vsock", "A vsock is not part of mayfly."),
    ] {
        assert_eq!(fixture.expect_fault(method, path, "{}"), text, "{method} {path}");
    }
    assert_eq!(
        fixture.expect_fault("PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "/v"}"#),
        "The field guest_cid cannot be 3: vsock is not part of mayfly."
    );
    fixture.expect_no_content(
        "PUT",
        "/vsock",
        r#"{"guest_cid": 0, "uds_path": "", "vsock_id": ""}"#,
    );
}

#[test]
fn requests_require_start() {
    let mut fixture = Fixture::new();
    for (method, path, body) in [
        ("PATCH", "/vm", r#"{"state": "Paused"}"#),
        ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
        ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#),
        ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
        ("PATCH", "/drives/a", r#"{"drive_id": "a"}"#),
        ("PATCH", "/network-interfaces/a", r#"{"iface_id": "a"}"#),
        ("DELETE", "/drives/a", ""),
        ("DELETE", "/network-interfaces/a", ""),
    ] {
        assert_eq!(
            fixture.expect_fault(method, path, body),
            BEFORE,
            "{method} {path}"
        );
    }
    assert_ne!(BEFORE, AFTER);
    assert_eq!(
        fixture.expect_fault("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
        "Start microvm error: Cannot start microvm without kernel configuration."
    );
}

#[test]
fn failures_have_prefix_and_causes() {
    let mut fixture = Fixture::new();
    let boot = fixture.expect_fault("PUT", "/boot-source", r#"{"kernel_image_path": "@/none"}"#);
    assert!(
        boot.starts_with("Boot source error: ") && boot.contains("no such file"),
        "{boot}"
    );
    let drive = r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "@/none"}"#;
    let drive = fixture.expect_fault("PUT", "/drives/a", drive);
    assert!(
        drive.starts_with("Drive config error: ") && drive.contains("@/none"),
        "{drive}"
    );
    let machine = r#"{"vcpu_count": 1, "mem_size_mib": 17592186044415}"#;
    let machine = fixture.expect_fault("PUT", "/machine-config", machine);
    assert!(machine.starts_with("Machine config error: "), "{machine}");
    let interface = r#"{"iface_id": "a", "host_dev_name": "", "guest_mac": "01:00:00:00:00"}"#;
    assert_eq!(
        fixture.expect_fault("PUT", "/network-interfaces/a", interface),
        "Network config error: \"01:00:00:00:00\" is not a MAC address: use six bytes such as 02:00:00:00:00:01"
    );
    let interface = r#"{"iface_id": "a", "host_dev_name": "mayfly-no-tap"}"#;
    let interface = fixture.expect_fault("PUT", "/network-interfaces/a", interface);
    assert!(interface.starts_with("Network config error: "), "{interface}");
    assert_eq!(
        fixture.expect_fault("PUT", "/logger", r#"{"module": "wrong"}"#),
        "Logger error: there is no such module"
    );
    let serial = fixture.expect_fault("PUT", "/serial", r#"{"serial_out_path": "@/none/x"}"#);
    assert!(serial.starts_with("Serial config error: "), "{serial}");
    for (body, text) in [
        (
            r#"{"console": "tcp:1"}"#,
            "console \"tcp:1\" is invalid: expected stdio, unix:PATH, pty or file:PATH",
        ),
        (
            r#"{"console": "pty", "serial_out_path": "/x"}"#,
            "serial_out_path and console are both given; remove one",
        ),
    ] {
        let fault = fixture.expect_fault("PUT", "/serial", body);
        assert_eq!(fault, format!("Serial config error: {text}"));
    }
    for (args, text) in [
        ("\u{e9}".to_owned(), "printable ASCII"),
        ("a".repeat(2048), "2047"),
    ] {
        let body = json!({"kernel_image_path": "@/kernel", "boot_args": args}).to_string();
        let fault = fixture.expect_fault("PUT", "/boot-source", &body);
        assert!(
            fault.starts_with("Boot source error: boot_args") && fault.contains(text),
            "{fault}"
        );
    }
}

#[test]
fn kernel_protocol_is_set_and_returned() {
    let mut fixture = Fixture::new();
    let boot = |protocol: &str| {
        json!({"kernel_image_path": "@/kernel", "boot_args": "a", "kernel_protocol": protocol}).to_string()
    };
    fixture.expect_no_content("PUT", "/boot-source", &boot("linux"));
    assert_eq!(
        fixture.get("/vm/config")["boot-source"]["kernel_protocol"],
        "linux"
    );
    let fault = fixture.expect_fault("PUT", "/boot-source", &boot("pvh"));
    assert!(
        fault.starts_with("Boot source error: ") && fault.contains("no note of a PVH entry"),
        "{fault}"
    );
    let fault = fixture.expect_fault("PUT", "/boot-source", &boot("multiboot2"));
    assert!(fault.contains("unknown variant `multiboot2`"), "{fault}");
    let unset = r#"{"kernel_image_path": "@/kernel", "kernel_protocol": null}"#;
    fixture.expect_no_content("PUT", "/boot-source", unset);
    let config = fixture.get("/vm/config");
    assert!(config["boot-source"].get("kernel_protocol").is_none(), "{config}");
}

#[test]
fn root_argument_counts_toward_boot_args() {
    let boot =
        |length: usize| json!({"kernel_image_path": "@/kernel", "boot_args": "a".repeat(length)}).to_string();
    let drive = |is_root: bool| {
        json!({"drive_id": "a", "path_on_host": "@/disk", "is_read_only": false, "is_root_device": is_root})
            .to_string()
    };
    let longest = 2047 - " root=/dev/vda rw".len();
    let text = "and 2048 with \"root=/dev/vda rw\" for the root drive";

    let mut fixture = Fixture::new();
    fixture.expect_no_content("PUT", "/drives/a", &drive(true));
    let fault = fixture.expect_fault("PUT", "/boot-source", &boot(longest + 1));
    assert!(
        fault.starts_with("Boot source error: boot_args") && fault.contains(text),
        "{fault}"
    );
    fixture.expect_no_content("PUT", "/boot-source", &boot(longest));
    fixture.expect_no_content("PUT", "/drives/a", &drive(true));

    fixture.reset();
    fixture.expect_no_content("PUT", "/boot-source", &boot(longest + 1));
    let fault = fixture.expect_fault("PUT", "/drives/a", &drive(true));
    assert!(
        fault.starts_with("Drive config error: boot_args") && fault.contains(text),
        "{fault}"
    );
    assert_eq!(fixture.get("/vm/config")["drives"], json!([]));
    fixture.expect_no_content("PUT", "/drives/a", &drive(false));
    fixture.expect_no_content("PUT", "/boot-source", &boot(2047));
}

#[test]
fn machine_is_set_and_changed() {
    let mut fixture = Fixture::new();
    let default = json!({"vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false,
        "huge_pages": "None"});
    assert_eq!(fixture.get("/machine-config"), default);
    let body = r#"{"vcpu_count": 2, "mem_size_mib": 64, "ht_enabled": false, "track_dirty_pages": true,
        "huge_pages": "Transparent"}"#;
    fixture.expect_no_content("PUT", "/machine-config", body);
    fixture.expect_no_content(
        "PATCH",
        "/machine-config",
        r#"{"mem_size_mib": 32, "vcpu_count": null}"#,
    );
    let changed = json!({"vcpu_count": 2, "mem_size_mib": 32, "smt": false, "track_dirty_pages": true,
        "huge_pages": "Transparent"});
    assert_eq!(fixture.get("/machine-config"), changed);
    for (field, value) in [("huge_pages", r#""2M""#), ("cpu_template", r#""T2""#)] {
        let body = format!(r#"{{"vcpu_count": 1, "mem_size_mib": 16, "{field}": {value}}}"#);
        let fault = fixture.expect_fault("PUT", "/machine-config", &body);
        assert!(
            fault.starts_with(&format!("The field {field} cannot be {value}: ")),
            "{fault}"
        );
    }
    assert_eq!(fixture.get("/machine-config"), changed);
    fixture.expect_no_content(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count": 1, "mem_size_mib": 128}"#,
    );
    assert_eq!(fixture.get("/machine-config"), default);
}

#[test]
fn processor_features_are_set_by_name() {
    let [own, foreign] = match std::env::consts::ARCH {
        "x86_64" => ["pmu,tsx", "sve"],
        _ => ["sve,pauth", "pmu"],
    };
    let mut fixture = Fixture::new();
    let put = |names: &str| format!(r#"{{"vcpu_count": 1, "mem_size_mib": 16, "cpu_features": "{names}"}}"#);
    fixture.expect_no_content("PUT", "/machine-config", &put(own));
    assert_eq!(fixture.get("/machine-config")["cpu_features"], own);
    assert_eq!(fixture.get("/vm/config")["machine-config"]["cpu_features"], own);
    fixture.expect_no_content("PATCH", "/machine-config", r#"{"vcpu_count": 2}"#);
    assert_eq!(fixture.get("/machine-config")["cpu_features"], own);
    let unknown = "Machine config error: cpu_features: \"vmx\" is not a processor feature: use sve or pauth on aarch64; virtualization, pmu, \
                   trace, sgx, resource-control, tsx on x86_64";
    let rejected = [
        ("PUT", put("vmx"), unknown),
        ("PATCH", r#"{"cpu_features": "vmx"}"#.to_owned(), unknown),
        (
            "PUT",
            put(""),
            "Machine config error: cpu_features: \"\" is not a processor feature",
        ),
        (
            "PUT",
            put(foreign),
            "Machine config error: cannot build the machine: cannot create the machine on this architecture: the processor features",
        ),
    ];
    for (method, body, start) in rejected {
        let fault = fixture.expect_fault(method, "/machine-config", &body);
        assert!(fault.starts_with(start), "{body}: {fault}");
    }
    assert_eq!(fixture.get("/machine-config")["cpu_features"], own);
    let body = r#"{"vcpu_count": 1, "mem_size_mib": 16}"#;
    fixture.expect_no_content("PUT", "/machine-config", body);
    assert_eq!(fixture.get("/machine-config").get("cpu_features"), None);
}

#[test]
fn smt_is_accepted_for_even_number_of_vcpus() {
    let mut fixture = Fixture::new();
    // firectl sends the first, ignite the second, a client of many versions both.
    for body in [
        r#"{"mem_size_mib":512,"smt":true,"vcpu_count":1}"#,
        r#"{"ht_enabled":true,"mem_size_mib":512,"vcpu_count":2}"#,
        r#"{"ht_enabled":false,"mem_size_mib":512,"smt":true,"vcpu_count":2}"#,
        r#"{"ht_enabled":null,"mem_size_mib":512,"smt":true,"vcpu_count":32}"#,
    ] {
        fixture.expect_no_content("PUT", "/machine-config", body);
        assert_eq!(fixture.get("/machine-config")["smt"], true, "{body}");
        assert_eq!(fixture.get("/vm/config")["machine-config"]["smt"], true, "{body}");
    }
    let rejection = "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number \
                     if SMT is enabled.";
    let odd = r#"{"mem_size_mib":512,"smt":true,"vcpu_count":3}"#;
    assert_eq!(fixture.expect_fault("PUT", "/machine-config", odd), rejection);
    let odd = r#"{"vcpu_count":3}"#;
    assert_eq!(fixture.expect_fault("PATCH", "/machine-config", odd), rejection);
    fixture.expect_no_content("PATCH", "/machine-config", r#"{"vcpu_count":3,"smt":false}"#);
    let smt = r#"{"ht_enabled":true}"#;
    assert_eq!(fixture.expect_fault("PATCH", "/machine-config", smt), rejection);
    fixture.expect_no_content("PUT", "/machine-config", r#"{"mem_size_mib":512,"vcpu_count":3}"#);
    assert_eq!(fixture.get("/machine-config")["smt"], false);
}

#[test]
fn deprecated_fields_set_header() {
    let mut fixture = Fixture::new();
    let mut request = |method, path, body: &str| fixture.request(method, path, body.as_bytes());
    let deprecated = crate::http::Response::no_content().deprecated();
    let body = r#"{"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "None"}"#;
    assert_eq!(request("PUT", "/machine-config", body), deprecated);
    assert_eq!(
        request("PATCH", "/machine-config", r#"{"cpu_template": "None"}"#),
        deprecated
    );
    // Rejections have it too, once the body is read.
    for (method, path, body, is_deprecated) in [
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 3, "mem_size_mib": 128, "smt": true, "cpu_template": "None"}"#,
            true,
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 3, "mem_size_mib": 128, "smt": true}"#,
            false,
        ),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "/s", "mem_file_path": "/m"}"#,
            true,
        ),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "/s", "mem_backend": {"backend_type": "File", "backend_path": "/m"}}"#,
            false,
        ),
        (
            "PUT",
            "/snapshot/load",
            r#"{"enable_diff_snapshots": true}"#,
            false,
        ),
    ] {
        let response = request(method, path, body);
        assert_eq!(response.status(), 400, "{body}");
        assert_eq!(response == response.clone().deprecated(), is_deprecated, "{body}");
    }
    assert_eq!(request("PUT", "/vsock", r#"{"vsock_id": ""}"#), deprecated);
    assert_ne!(request("PUT", "/vsock", "{}"), deprecated);
}

#[test]
fn instance_info_is_exact() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.get("/"),
        json!({"id": "vm-1", "state": "Not started", "vmm_version": "1.2.3", "app_name": "mayfly"})
    );
    assert_eq!(fixture.get("/version"), json!({"firecracker_version": "1.2.3"}));
}

#[test]
fn response_key_order_is_exact() {
    let mut fixture = Fixture::new();
    let drive = r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "@/disk"}"#;
    fixture.expect_no_content("PUT", "/drives/a", drive);
    let machine =
        r#"{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false,"huge_pages":"None"}"#;
    let drive = fixture.at(
        r#"{"drive_id":"a","is_root_device":true,"path_on_host":"@/disk","is_read_only":false,"partuuid":null,"cache_type":"Unsafe","io_engine":"Sync","rate_limiter":null,"socket":null}"#,
    );
    let config = format!(
        r#"{{"balloon":null,"boot-source":null,"cpu-config":null,"drives":[{drive}],"entropy":null,"logger":null,"machine-config":{machine},"memory-hotplug":null,"metrics":null,"mmds-config":null,"network-interfaces":[],"pmem":[],"vsock":null}}"#
    );
    for (path, expected) in [
        (
            "/",
            r#"{"id":"vm-1","state":"Not started","vmm_version":"1.2.3","app_name":"mayfly"}"#,
        ),
        ("/machine-config", machine),
        ("/vm/config", &config),
    ] {
        let response = fixture.request("GET", path, b"");
        assert_eq!(String::from_utf8_lossy(response.body()), expected);
    }
}

#[test]
fn vm_config_loads_as_configuration_file() {
    let mut fixture = Fixture::new();
    let empty = fixture.get("/vm/config");
    assert_eq!(
        (&empty["boot-source"], &empty["drives"]),
        (&json!(null), &json!([]))
    );
    fixture.expect_no_content(
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path": "@/kernel", "initrd_path": "@/initrd"}"#,
    );
    let limiter = r#"{"bandwidth": {"size": 9, "refill_time": 8, "one_time_burst": 7}, "ops": {"size": 0, "refill_time": 1}}"#;
    let drive = format!(
        r#"{{"drive_id": "data", "is_root_device": false, "path_on_host": "@/empty", "cache_type": "Writeback",
            "is_read_only": true, "rate_limiter": {limiter}}}"#
    );
    fixture.expect_no_content("PUT", "/drives/data", &drive);
    let root =
        r#"{"drive_id": "root", "is_root_device": true, "path_on_host": "@/disk", "partuuid": "12-34"}"#;
    fixture.expect_no_content("PUT", "/drives/root", root);
    let config = fixture.get("/vm/config");
    let args = crate::schema::DEFAULT_BOOT_ARGS;
    let boot = json!({"kernel_image_path": "@/kernel", "initrd_path": "@/initrd", "boot_args": args});
    assert_eq!(config["boot-source"], boot);
    assert_eq!(
        config["drives"],
        json!([
            {"drive_id": "root", "is_root_device": true, "path_on_host": "@/disk", "is_read_only": false,
                "partuuid": "12-34", "cache_type": "Unsafe", "io_engine": "Sync", "rate_limiter": null,
                "socket": null},
            {"drive_id": "data", "is_root_device": false, "path_on_host": "@/empty", "is_read_only": true,
                "partuuid": null, "cache_type": "Writeback", "io_engine": "Sync",
                "rate_limiter": {"bandwidth": {"size": 9, "refill_time": 8, "one_time_burst": 7}, "ops": null}, "socket": null},
        ])
    );
    assert_eq!(config["machine-config"], fixture.get("/machine-config"));
    // The response is a valid configuration file.
    let text = fixture.at(&config.to_string());
    fixture.reset();
    fixture.api.apply(&mut fixture.control, &text).unwrap();
    assert_eq!(fixture.get("/vm/config"), config);
}

#[test]
fn logger_settings_reach_log() {
    let mut fixture = Fixture::new();
    fixture.expect_no_content(
        "PUT",
        "/logger",
        r#"{"log_path": "/l", "level": "warning", "show_level": true}"#,
    );
    fixture.expect_no_content(
        "PUT",
        "/logger",
        r#"{"show_log_origin": false, "module": "a::b", "level": null}"#,
    );
    let settings = fixture.log.0.borrow();
    assert_eq!(settings[0].path.as_deref(), Some("/l".as_ref()));
    assert_eq!(
        (settings[0].level, settings[0].show_level),
        (Some(log::LevelFilter::Warn), Some(true))
    );
    assert_eq!(
        (settings[0].show_origin, settings[0].module.as_deref()),
        (None, None)
    );
    assert_eq!(
        (settings[1].show_origin, settings[1].module.as_deref()),
        (Some(false), Some("a::b"))
    );
    assert_eq!((settings[1].level, &settings[1].path), (None, &None));
}

#[test]
fn responses_are_counted() {
    let mut fixture = Fixture::new();
    fixture.get("/");
    fixture.expect_no_content("PUT", "/vsock", "{}");
    fixture.expect_fault("GET", "/foo", "");
    let counters = *fixture.api.process().counters();
    assert_eq!((counters.accepted, counters.refused), (2, 1));
}

#[test]
fn metrics_and_specification_are_text() {
    let mut fixture = Fixture::new();
    let metrics = fixture.request("GET", "/metrics", b"");
    let expected = crate::http::Response::text("text/plain; version=0.0.4", metrics.body().to_vec());
    assert_eq!(metrics, expected);
    let specification = fixture.request("GET", "/openapi.yaml", b"");
    let text = include_str!("../../../resources/openapi.yaml");
    assert_eq!(
        specification,
        crate::http::Response::text("application/yaml", text.as_bytes())
    );
}

/// Values for a field; none is the path of a file that could be created.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_u64..70).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!("")),
        Just(json!("/")),
        Just(json!("/none/x")),
        "\\PC{0,20}".prop_map(|text| json!(format!("/none/{text}"))),
    ];
    let names = prop_oneof!["[a-z_]{1,12}", Just("bandwidth".into()), Just("size".into())];
    leaf.prop_recursive(3, 12, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(names.clone(), inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

fn status(fixture: &mut Fixture, index: usize, body: &[u8]) -> u16 {
    let route = &ROUTES[index % ROUTES.len()];
    let path = route.path.replace("{drive_id}", "a").replace("{iface_id}", "a");
    fixture.request(route.method.name(), &path, body).status()
}

proptest! {
    #[test]
    fn random_body_gets_known_status(index in any::<usize>(), body in any::<Vec<u8>>()) {
        let status = status(&mut Fixture::new(), index, &body);
        prop_assert!([200, 204, 400].contains(&status));
    }

    #[test]
    fn random_path_gets_known_status(method in "(GET|PUT|PATCH|DELETE|HEAD|[A-Z]{1,9})", path in "/?\\PC{0,30}") {
        let status = Fixture::new().request(&method, &path, b"{}").status();
        prop_assert!([200, 204, 400].contains(&status));
    }

    #[test]
    fn random_field_gets_known_status(
        index in any::<usize>(),
        changes in proptest::collection::vec((any::<usize>(), value()), 1..4),
    ) {
        let route = &ROUTES[index % ROUTES.len()];
        let Some(name) = route.body else { return Ok(()) };
        let schema = yaml()["components"]["schemas"][name].take();
        // The example has paths of other files.
        let mut body = schema["example"].clone();
        body["metrics_path"] = json!("/none/x");
        body["serial_out_path"] = json!("/none/x");
        let names: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        for (place, value) in changes {
            body[names[place % names.len()]] = value;
        }
        let status = status(&mut Fixture::new(), index, body.to_string().as_bytes());
        prop_assert!([200, 204, 400].contains(&status));
    }
}

#[test]
fn debugger_needs_upgrade_of_connection() {
    let response = Fixture::new().request("PUT", "/vm/debugger", b"{}");
    let text = String::from_utf8_lossy(response.body()).into_owned();
    assert_eq!(response.status(), 400);
    assert!(text.contains("no header Upgrade: gdb"), "{text}");
}
