//! urunc's checkpoints, byte for byte as its Go client writes them.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::super::http::{Client, DONE, go};
use super::super::served::{ApiProcess, Directory};
use super::count;
use crate::guests::{file, program};
use crate::network::{in_own_network, output_of};

fn firecracker() -> ApiProcess {
    let folder = Directory::new();
    let (link, socket) = (folder.path("firecracker"), folder.text("api.sock"));
    symlink(program(), &link).unwrap();
    ApiProcess::called(folder, Command::new(link).args(["--api-sock", &socket]))
}

fn go_asks(client: &mut Client, method: &str, path: &str, body: &str) {
    client.send(go(method, path, &format!("{body}\n")));
    assert_eq!(client.receive().text, DONE, "{method} {path} {body}");
}

fn make_tap(name: &str) {
    output_of(&format!("ip tuntap add {name} mode tap"));
    output_of(&format!("ip link set {name} up"));
}

#[test]
fn a_container_is_checkpointed_and_restored() {
    in_own_network(|| {
        make_tap("tap0_urunc");
        let folder = Directory::new();
        let at = |text: &str| {
            text.replace(
                "/urunc-snapshot",
                folder.path("").to_str().unwrap().trim_end_matches('/'),
            )
        };
        let mut served = firecracker();
        let mut client = served.connect();
        let kernel = file("ticker.elf");
        let interface = r#"{"iface_id":"net1","guest_mac":"02:b0:b0:00:00:02","host_dev_name":"tap0_urunc"}"#;
        go_asks(&mut client, "PUT", "/network-interfaces/net1", interface);
        go_asks(
            &mut client,
            "PUT",
            "/boot-source",
            &format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"Unikraft -- /app"}}"#),
        );
        go_asks(
            &mut client,
            "PUT",
            "/actions",
            r#"{"action_type":"InstanceStart"}"#,
        );
        served.expect("tick 3\n");

        go_asks(&mut client, "PATCH", "/vm", r#"{"state":"Paused"}"#);
        let create = at(
            r#"{"snapshot_type":"Full","snapshot_path":"/urunc-snapshot/vmstate","mem_file_path":"/urunc-snapshot/memory"}"#,
        );
        go_asks(&mut client, "PUT", "/snapshot/create", &create);
        go_asks(&mut client, "PATCH", "/vm", r#"{"state":"Resumed"}"#);
        served.expect("tick 9\n");
        let printed = served.kill();
        count(&printed);
        // It takes along what are regular files in that folder, and nothing else.
        let mut names: Vec<_> = fs::read_dir(folder.path(""))
            .unwrap()
            .map(|entry| entry.unwrap())
            .inspect(|entry| assert!(entry.file_type().unwrap().is_file()))
            .map(|entry| entry.file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["memory", "vmstate"]);

        output_of("ip link del tap0_urunc");
        make_tap("tap1_urunc");
        let mut restored = firecracker();
        let load = at(
            r#"{"snapshot_path":"/urunc-snapshot/vmstate","mem_backend":{"backend_type":"File","backend_path":"/urunc-snapshot/memory"},"resume_vm":true,"network_overrides":[{"iface_id":"net1","host_dev_name":"tap1_urunc"}]}"#,
        );
        go_asks(&mut restored.connect(), "PUT", "/snapshot/load", &load);
        restored.expect("tick 9\n");
        restored.terminate();
    });
}
