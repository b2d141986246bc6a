use crate::testing::Fixture;

/// Applies `text`, in which `@` is the directory, and returns the error with its causes.
fn apply(fixture: &mut Fixture, text: &str) -> Result<(), String> {
    let text = fixture.at(text);
    let applied = fixture.api.apply(&mut fixture.control, &text);
    applied.map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    })
}

fn with_boot(rest: &str) -> String {
    format!(r#"{{"boot-source": {{"kernel_image_path": "@/kernel"}}, {rest}}}"#)
}

const URUNC: &str = r#""machine-config":{"vcpu_count":1,"mem_size_mib":64,"smt":false,"track_dirty_pages":false},
    "drives":[{"drive_id":"rootfs","is_read_only":false,"is_root_device":true,"path_on_host":"@/disk"}]"#;

#[test]
fn urunc_files_are_accepted() {
    for (rest, interfaces) in [
        (
            r#""network-interfaces":[{"iface_id":"net1","host_dev_name":""}]"#,
            1,
        ),
        (
            r#""network-interfaces":[{"iface_id":"net1","guest_mac":"02:00:00:00:00:01","host_dev_name":""}],
               "vsock":{"guest_cid":0,"uds_path":"","vsock_id":""}"#,
            1,
        ),
        (r#""network-interfaces":[]"#, 0),
    ] {
        let mut fixture = Fixture::new();
        let applied = apply(&mut fixture, &with_boot(&format!("{URUNC}, {rest}")));
        // A user without CAP_NET_ADMIN cannot create a tap.
        if let Err(text) = &applied
            && interfaces == 1
            && text.contains("Network config error")
        {
            continue;
        }
        applied.unwrap();
        let config = fixture.get("/vm/config");
        assert_eq!(config["machine-config"]["mem_size_mib"], 64);
        assert_eq!(config["drives"][0]["drive_id"], "rootfs");
        assert_eq!(config["network-interfaces"].as_array().unwrap().len(), interfaces);
        assert_eq!(fixture.get("/")["state"], "Not started");
    }
}

#[test]
fn ops_and_unikraft_files_are_accepted() {
    for rest in [
        r#""drives":[{"drive_id":"rootfs","path_on_host":"@/disk","is_root_device":true,"is_read_only":false}],
           "machine-config":{"vcpu_count":1,"mem_size_mib":64,"ht_enabled":false}"#,
        r#""drives": [], "machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "smt": false, "cpu_template": null}"#,
        r#""logger": null, "metrics": null, "vsock": null, "balloon": null, "pmem": [], "entropy": {}"#,
        r#""unknown": {"a": 1}"#,
    ] {
        apply(&mut Fixture::new(), &with_boot(rest)).unwrap();
    }
    let unikraft =
        r#"{"boot-source": {"kernel_image_path": "@/kernel", "boot_args": "app -- x", "initrd_path": null}}"#;
    let mut fixture = Fixture::new();
    apply(&mut fixture, unikraft).unwrap();
    assert_eq!(fixture.get("/vm/config")["machine-config"]["mem_size_mib"], 128);
}

#[test]
fn logger_section_is_applied_first() {
    let mut fixture = Fixture::new();
    let text =
        r#"{"boot-source": {"kernel_image_path": "@/none"}, "logger": {"log_path": "/l", "level": "Debug"}}"#;
    let message = apply(&mut fixture, text).unwrap_err();
    assert!(
        message.starts_with(
            "cannot apply section \"boot-source\" of the configuration file: Boot source error: "
        ),
        "{message}"
    );
    assert_eq!(fixture.log.0.borrow().len(), 1);
}

#[test]
fn errors_name_section() {
    for (text, expected) in [
        (
            with_boot(r#""balloon": {"amount_mib": 1}"#),
            r#"cannot apply section "balloon" of the configuration file: The balloon is not part of mayfly."#,
        ),
        (
            with_boot(r#""mmds-config": {"network_interfaces": ["eth0"]}"#),
            r#"cannot apply section "mmds-config" of the configuration file: MMDS is not part of mayfly."#,
        ),
        (
            with_boot(r#""cpu-config": "/c.json""#),
            r#"cannot apply section "cpu-config" of the configuration file: CPU configuration is not part"#,
        ),
        (
            with_boot(r#""vsock": {"guest_cid": 3, "uds_path": "kata.hvsock"}"#),
            r#"cannot apply section "vsock" of the configuration file: The field guest_cid cannot be 3: vsock is not part of mayfly."#,
        ),
        (
            with_boot(
                r#""drives": [{"drive_id": "a", "is_root_device": true, "path_on_host": "@/disk"}, {}]"#,
            ),
            r#"cannot apply section "drives[1]" of the configuration file: An error occurred when deserializing"#,
        ),
        (
            with_boot(r#""machine-config": {"vcpu_count": 0, "mem_size_mib": 1}"#),
            r#"cannot apply section "machine-config" of the configuration file: Invalid vcpu_count: 0"#,
        ),
        (
            with_boot(r#""drives": {}"#),
            "the configuration file is invalid: it must be a JSON object with a list",
        ),
        (
            "[]".into(),
            "the configuration file is invalid: it must be a JSON object with keys like",
        ),
        (
            "".into(),
            "the configuration file is invalid: it must be a JSON object with keys like",
        ),
        ("{}".into(), "the configuration file has no \"boot-source\""),
        (
            r#"{"boot-source": null}"#.into(),
            "the configuration file has no \"boot-source\"",
        ),
    ] {
        let message = apply(&mut Fixture::new(), &text).unwrap_err();
        assert!(message.starts_with(expected), "{text}: {message}");
    }
}
