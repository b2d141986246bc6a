//! Drives and interfaces of a guest that runs. It waits for a limiter until the test has made its change, so that nothing here
//! is a race.

use std::fs;
use std::process::Command;

use super::served::ApiProcess;
use crate::guests::file;
use crate::network::{in_own_network, output_of};

const SECTOR: usize = 512;
/// What a limiter is that lets one request pass, and the next in a month.
const ONE: &str = r#"{"ops":{"size":1,"refill_time":2592000000}}"#;
/// What takes it away.
const NONE: &str = r#"{"ops":{"size":0,"refill_time":0}}"#;

fn put_drive(served: &ApiProcess, id: &str, path: &str, limiter: &str) {
    let body = format!(
        r#"{{"drive_id":"{id}","is_root_device":false,"path_on_host":"{path}","is_read_only":false,"rate_limiter":{limiter}}}"#
    );
    served.expect_no_content("PUT", &format!("/drives/{id}"), &body);
}

fn patch_drive(served: &ApiProcess, id: &str, change: &str) {
    let body = format!("{{\"drive_id\":\"{id}\"{change}}}");
    served.expect_no_content("PATCH", &format!("/drives/{id}"), &body);
}

/// The disk guest with the drives `a`, which is throttled after its first request, and `b`.
fn throttled() -> ApiProcess {
    let served = ApiProcess::start();
    for name in ["a", "b"] {
        let path = served.folder.write(name, vec![0xa5; 100 * SECTOR]);
        put_drive(&served, name, &path, if name == "a" { ONE } else { NONE });
    }
    served.boots("disk.elf");
    served.act("InstanceStart");
    served
}

#[test]
fn a_drive_goes_on_with_another_file() {
    let mut served = throttled();
    served.expect("disk [a]\n");
    let path = served.folder.write("c", vec![0x5a; 100 * SECTOR]);
    patch_drive(&served, "a", &format!(",\"path_on_host\":\"{path}\""));
    let shown = served.ask("GET", "/vm/config", "").json();
    assert_eq!(shown["drives"][0]["path_on_host"], path.as_str());
    patch_drive(&served, "a", &format!(",\"rate_limiter\":{NONE}"));
    served.expect("ok disk 100 sectors\ndisk [b]\nok disk 100 sectors\n");
    let content = |name| fs::read(served.folder.path(name)).unwrap();
    assert!(
        content("a") == vec![0xa5; 100 * SECTOR],
        "the old file was written to"
    );
    assert!(
        content("c") != vec![0x5a; 100 * SECTOR],
        "the new file was not written to"
    );
    served.ends_with(0);
}

#[test]
fn a_drive_gets_the_size_of_its_file() {
    let mut served = throttled();
    served.expect("disk [a]\n");
    let other = served.folder.write("c", vec![0; 300 * SECTOR]);
    patch_drive(&served, "b", &format!(",\"path_on_host\":\"{other}\""));
    // The file grows, and nobody says more than that it is to be looked at.
    fs::File::options()
        .write(true)
        .open(&other)
        .unwrap()
        .set_len(1000 * 512)
        .unwrap();
    patch_drive(&served, "b", "");
    patch_drive(&served, "a", &format!(",\"rate_limiter\":{NONE}"));
    served.expect("ok disk 100 sectors\ndisk [b]\nok disk 1000 sectors\n");
    served.ends_with(0);
}

#[test]
fn a_change_that_cannot_be_leaves_the_drive_as_it_is() {
    let mut served = throttled();
    served.expect("disk [a]\n");
    for change in [
        r#""path_on_host":"/nowhere/disk""#,
        r#""path_on_host":"/""#,
        r#""path_on_host":"/nowhere/disk","rate_limiter":{"ops":{"size":0,"refill_time":0}}"#,
        r#""path_on_host":7"#,
        r#""rate_limiter":{"ops":{"size":1}}"#,
    ] {
        let answer = served.ask("PATCH", "/drives/a", &format!("{{\"drive_id\":\"a\",{change}}}"));
        assert_eq!(answer.status(), 400, "{change}: {answer:?}");
    }
    assert_eq!(served.state(), "Running");
    patch_drive(&served, "a", &format!(",\"rate_limiter\":{NONE}"));
    served.expect("ok disk 100 sectors\ndisk [b]\nok disk 100 sectors\n");
    served.ends_with(0);
}

#[test]
fn an_interface_gets_other_limits() {
    in_own_network(|| {
        output_of("ip tuntap add tap0 mode tap");
        output_of("ip addr add 10.0.0.1/24 dev tap0");
        output_of("ip link set tap0 up");
        let mut served = ApiProcess::start();
        let body = format!(
            r#"{{"iface_id":"1","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:07","tx_rate_limiter":{ONE}}}"#
        );
        served.expect_no_content("PUT", "/network-interfaces/1", &body);
        let kernel = file("net.elf");
        let body = format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"ip=10.0.0.2"}}"#);
        served.expect_no_content("PUT", "/boot-source", &body);
        served.act("InstanceStart");
        served.expect("net 02:00:00:00:00:07 at 10.0.0.2\n");
        // It may send the answer to ARP, and nothing else.
        let ping = Command::new("ping")
            .args(["-c", "1", "-W", "1", "10.0.0.2"])
            .output()
            .unwrap();
        assert!(!ping.status.success(), "{ping:?}");
        let body = format!(r#"{{"iface_id":"1","tx_rate_limiter":{NONE}}}"#);
        served.expect_no_content("PATCH", "/network-interfaces/1", &body);
        let pings = output_of("ping -c 2 -i 0.1 -W 30 10.0.0.2");
        assert!(pings.contains("2 received"), "{pings}");
        served.terminate();
    });
}
