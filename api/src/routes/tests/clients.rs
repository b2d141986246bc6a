//! Requests of real clients up to the start, which requires KVM.

use crate::testing::Fixture;

/// Puts an interface, which may be rejected: a user without CAP_NET_ADMIN cannot create a tap.
fn put_interface(fixture: &mut Fixture, id: &str, body: &str) {
    let response = fixture.request("PUT", &format!("/network-interfaces/{id}"), body.as_bytes());
    let text = String::from_utf8_lossy(response.body());
    let is_rejected = response.status() == 400 && text.contains("Network config error: ");
    assert!(response.status() == 204 || is_rejected, "{body}: {text}");
}

#[test]
fn kraftkit_requests_are_accepted() {
    let mut fixture = Fixture::new();
    let interface = r#"{"guest_mac":"02:b0:b0:00:00:01","host_dev_name":"","iface_id":"kraft-br0"}"#;
    put_interface(&mut fixture, "kraft-br0", interface);
    fixture.expect_no_content("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":64}"#);
    let boot = r#"{"kernel_image_path":"@/kernel","initrd_path":"@/initrd",
        "boot_args":"kernel env.vars=[ \"A=b\" ]  vfs.fstab=[ \"initrd0:/:extract:::\" ] -- /server -v "}"#;
    fixture.expect_no_content("PUT", "/boot-source", boot);
    let logger =
        r#"{"level":"Debug","log_path":"@/firecracker.log","show_level":true,"show_log_origin":true}"#;
    fixture.expect_no_content("PUT", "/logger", logger);
    assert_eq!(fixture.get("/")["state"], "Not started");
    let config = fixture.get("/vm/config");
    assert_eq!(
        config["boot-source"]["boot_args"],
        "kernel env.vars=[ \"A=b\" ]  vfs.fstab=[ \"initrd0:/:extract:::\" ] -- /server -v "
    );
}

#[test]
fn firecracker_go_sdk_requests_are_accepted() {
    let mut fixture = Fixture::new();
    fixture.get("/machine-config");
    fixture.expect_no_content(
        "PUT",
        "/logger",
        r#"{"level":"Info","log_path":"log.fifo","show_level":true,"show_log_origin":false}"#,
    );
    let machine =
        r#"{"cpu_template":"None","mem_size_mib":256,"smt":false,"track_dirty_pages":false,"vcpu_count":1}"#;
    assert_eq!(
        fixture
            .request("PUT", "/machine-config", machine.as_bytes())
            .status(),
        204
    );
    assert_eq!(fixture.get("/machine-config")["mem_size_mib"], 256);
    fixture.expect_no_content(
        "PUT",
        "/boot-source",
        r#"{"boot_args":"console=ttyS0 reboot=k","kernel_image_path":"@/kernel"}"#,
    );
    let drive = r#"{"cache_type":"Unsafe","drive_id":"1","io_engine":"Sync","is_read_only":false,"is_root_device":true,
        "path_on_host":"@/disk","rate_limiter":{"bandwidth":{"one_time_burst":1048576,"refill_time":500,"size":1048576},
        "ops":null}}"#;
    fixture.expect_no_content("PUT", "/drives/1", drive);
    put_interface(
        &mut fixture,
        "1",
        r#"{"allow_mmds_requests":true,"guest_mac":"AA:FC:00:00:00:01","host_dev_name":"","iface_id":"1"}"#,
    );
}

#[test]
fn urunc_requests_are_accepted() {
    let mut fixture = Fixture::new();
    let machine = r#"{"vcpu_count":1,"mem_size_mib":256,"smt":false,"track_dirty_pages":false}"#;
    fixture.expect_no_content("PUT", "/machine-config", machine);
    put_interface(&mut fixture, "net1", r#"{"iface_id":"net1","host_dev_name":""}"#);
    let drive = r#"{"drive_id":"rootfs","is_read_only":false,"is_root_device":true,"path_on_host":"@/disk"}"#;
    fixture.expect_no_content("PUT", "/drives/rootfs", drive);
    let args = r#"Unikraft netdev.ip=10.0.0.2/24:10.0.0.1:8.8.8.8   -- /server"#;
    let boot = format!(r#"{{"kernel_image_path":"@/kernel","boot_args":"{args}","initrd_path":"@/initrd"}}"#);
    fixture.expect_no_content("PUT", "/boot-source", &boot);
    fixture.expect_no_content("PUT", "/vsock", r#"{"guest_cid":0,"uds_path":"","vsock_id":""}"#);
}

#[test]
fn kata_requests_are_accepted() {
    let mut fixture = Fixture::new();
    let machine = r#"{"mem_size_mib": 2048, "vcpu_count": 1}"#;
    // Some hosts have less memory.
    let response = fixture.request("PUT", "/machine-config", machine.as_bytes());
    let text = String::from_utf8_lossy(response.body());
    assert!(
        response.status() == 204 || text.contains("Machine config error"),
        "{text}"
    );
    fixture.expect_no_content(
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path": "@/kernel", "boot_args": "console=ttyS0 panic=1"}"#,
    );
    fixture.expect_no_content(
        "PUT",
        "/drives/rootfs",
        r#"{"drive_id": "rootfs", "path_on_host": "@/disk", "is_root_device": true, "is_read_only": true}"#,
    );
    for index in 1..6 {
        let stub = format!(
            r#"{{"drive_id": "drive{index}", "path_on_host": "@/{index}", "is_root_device": false, "is_read_only": false}}"#
        );
        std::fs::write(fixture.at(&format!("@/{index}")), "").unwrap();
        fixture.expect_no_content("PUT", &format!("/drives/drive{index}"), &stub);
    }
    assert_eq!(fixture.get("/vm/config")["drives"].as_array().unwrap().len(), 6);
    assert_eq!(
        fixture.expect_fault(
            "PUT",
            "/vsock",
            r#"{"guest_cid": 3, "uds_path": "kata.hvsock", "vsock_id": "root"}"#
        ),
        "The field guest_cid cannot be 3: vsock is not part of mayfly."
    );
}
