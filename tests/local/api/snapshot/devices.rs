//! Drives and interfaces that a restored guest finds elsewhere.

use std::fs;

use super::super::served::{ApiProcess, Directory};
use super::{body, load_snapshot, pause_and_create};
use crate::guests::file;
use crate::network::{in_own_network, output_of};

const SECTOR: usize = 512;
/// What a limiter is that lets one request pass, and the next in a month.
const ONE: &str = r#"{"ops":{"size":1,"refill_time":2592000000}}"#;
/// What takes it away.
const NONE: &str = r#"{"ops":{"size":0,"refill_time":0}}"#;

/// The disk guest in the middle of its second request, frozen in `folder`, and the path of its drive.
fn frozen(folder: &Directory) -> String {
    let mut served = ApiProcess::start();
    let disk = folder.write("disk", vec![0xa5; 100 * SECTOR]);
    let drive =
        format!(r#"{{"drive_id":"a","is_root_device":false,"path_on_host":"{disk}","rate_limiter":{ONE}}}"#);
    served.expect_no_content("PUT", "/drives/a", &drive);
    served.boots("disk.elf");
    served.act("InstanceStart");
    served.expect("disk [a]\n");
    pause_and_create(&served, folder, "Full", "state", "memory");
    served.kill();
    disk
}

fn go_on(mut served: ApiProcess) {
    let limiter = format!(r#"{{"drive_id":"a","rate_limiter":{NONE}}}"#);
    served.expect_no_content("PATCH", "/drives/a", &limiter);
    served.expect("ok disk 100 sectors\n");
    served.ends_with(0);
}

#[test]
fn a_drive_is_on_another_file() {
    let folder = Directory::new();
    let disk = frozen(&folder);
    let before = fs::read(&disk).unwrap();
    fs::remove_file(&disk).unwrap();
    for name in ["first", "second"] {
        let clone = folder.write(name, &before);
        let fields =
            format!(r#","resume_vm":true,"drive_overrides":[{{"drive_id":"a","path_on_host":"{clone}"}}]"#);
        let restored = load_snapshot(&folder, "state", "memory", &fields);
        let shown = restored.ask("GET", "/vm/config", "").json();
        assert_eq!(shown["drives"][0]["path_on_host"], clone.as_str());
        go_on(restored);
        assert!(fs::read(clone).unwrap() != before, "{name} was not written to");
    }
}

#[test]
fn a_drive_is_where_it_was() {
    let folder = Directory::new();
    let disk = frozen(&folder);
    let before = fs::read(&disk).unwrap();
    go_on(load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#));
    assert!(fs::read(&disk).unwrap() != before, "the drive was not written to");
}

#[test]
fn a_drive_that_is_gone_is_named() {
    let folder = Directory::new();
    let disk = frozen(&folder);
    fs::remove_file(&disk).unwrap();
    let served = ApiProcess::start();
    let load = body(&folder, "state", "memory", "");
    let why = served.ask("PUT", "/snapshot/load", &load).fault();
    assert!(
        why.starts_with("Load snapshot error: ") && why.contains(&disk),
        "{why}"
    );
    served.ends_with(1);
}

fn make_tap(name: &str) {
    output_of(&format!("ip tuntap add {name} mode tap"));
    output_of(&format!("ip addr add 10.0.0.1/24 dev {name}"));
    output_of(&format!("ip link set {name} up"));
}

fn pings() {
    let pings = output_of("ping -c 3 -i 0.1 -W 30 10.0.0.2");
    assert!(pings.contains("3 received"), "{pings}");
}

#[test]
fn an_interface_is_on_another_tap() {
    in_own_network(|| {
        let folder = Directory::new();
        make_tap("tap0");
        let mut served = ApiProcess::start();
        let interface = r#"{"iface_id":"net1","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:07"}"#;
        served.expect_no_content("PUT", "/network-interfaces/net1", interface);
        let boot = format!(
            r#"{{"kernel_image_path":"{}","boot_args":"ip=10.0.0.2"}}"#,
            file("net.elf")
        );
        served.expect_no_content("PUT", "/boot-source", &boot);
        served.act("InstanceStart");
        served.expect("net 02:00:00:00:00:07 at 10.0.0.2\n");
        pings();
        pause_and_create(&served, &folder, "Full", "state", "memory");
        served.kill();

        // On the same one, and then on another, while the first is gone.
        let restored = load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#);
        pings();
        restored.kill();
        output_of("ip link del tap0");
        make_tap("tap1");
        let fields = r#","resume_vm":true,"network_overrides":[{"iface_id":"net1","host_dev_name":"tap1"}]"#;
        let mut restored = load_snapshot(&folder, "state", "memory", fields);
        let shown = restored.ask("GET", "/vm/config", "").json();
        assert_eq!(shown["network-interfaces"][0]["host_dev_name"], "tap1");
        pings();
        let page = output_of("curl --silent --show-error --noproxy * --max-time 60 http://10.0.0.2/");
        assert_eq!(page, "hello from mayfly\n");
        // The pings from before it was frozen are in its memory.
        restored.expect(" 6 pings 1 pages\n");
        restored.ends_with(0);
    });
}
