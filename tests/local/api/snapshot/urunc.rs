//! Checkpoints by urunc, byte for byte in the format of its Go client.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::super::http::{Client, NO_CONTENT};
use super::super::replay::send_as_go;
use super::super::served::{ApiProcess, Directory, count_ticks, create_tap};
use crate::guests::{file, program};
use crate::network::{in_own_network, run_command};

fn start_firecracker() -> ApiProcess {
    let directory = Directory::new();
    let (link, socket) = (directory.path("firecracker"), directory.text("api.sock"));
    symlink(program(), &link).unwrap();
    ApiProcess::spawn(directory, Command::new(link).args(["--api-sock", &socket]))
}

fn send(client: &mut Client, method: &str, path: &str, body: &str) {
    send_as_go(client, method, path, body, NO_CONTENT);
}

#[test]
fn urunc_checkpoint_restores() {
    in_own_network(|| {
        create_tap("tap0_urunc");
        let directory = Directory::new();
        let replace_path = |text: &str| {
            text.replace(
                "/urunc-snapshot",
                directory.path("").to_str().unwrap().trim_end_matches('/'),
            )
        };
        let mut process = start_firecracker();
        let mut client = process.connect();
        let kernel = file("ticker.elf");
        let interface = r#"{"iface_id":"net1","guest_mac":"02:b0:b0:00:00:02","host_dev_name":"tap0_urunc"}"#;
        send(&mut client, "PUT", "/network-interfaces/net1", interface);
        send(
            &mut client,
            "PUT",
            "/boot-source",
            &format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"Unikraft -- /app"}}"#),
        );
        send(
            &mut client,
            "PUT",
            "/actions",
            r#"{"action_type":"InstanceStart"}"#,
        );
        process.expect("tick 3\n");

        send(&mut client, "PATCH", "/vm", r#"{"state":"Paused"}"#);
        let create = replace_path(
            r#"{"snapshot_type":"Full","snapshot_path":"/urunc-snapshot/vmstate","mem_file_path":"/urunc-snapshot/memory"}"#,
        );
        send(&mut client, "PUT", "/snapshot/create", &create);
        send(&mut client, "PATCH", "/vm", r#"{"state":"Resumed"}"#);
        process.expect("tick 9\n");
        let printed = process.kill();
        count_ticks(&printed);
        // urunc copies the regular files of that directory.
        let mut names: Vec<_> = fs::read_dir(directory.path(""))
            .unwrap()
            .map(|entry| entry.unwrap())
            .inspect(|entry| assert!(entry.file_type().unwrap().is_file()))
            .map(|entry| entry.file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["memory", "vmstate"]);

        run_command("ip link del tap0_urunc");
        create_tap("tap1_urunc");
        let mut restored = start_firecracker();
        let load = replace_path(
            r#"{"snapshot_path":"/urunc-snapshot/vmstate","mem_backend":{"backend_type":"File","backend_path":"/urunc-snapshot/memory"},"resume_vm":true,"network_overrides":[{"iface_id":"net1","host_dev_name":"tap1_urunc"}]}"#,
        );
        send(&mut restored.connect(), "PUT", "/snapshot/load", &load);
        restored.expect("tick 9\n");
        restored.terminate();
    });
}
