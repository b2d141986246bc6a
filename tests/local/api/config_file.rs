//! Configuration files, in all the shapes that clients write.

use std::fs;
use std::process::{Command, Output};

use super::served::{ApiProcess, Directory};
use crate::guests::{file, program};
use crate::network::in_own_network;

/// mayfly with `config`, in which KERNEL, DISK and FOLDER stand for paths, and no socket.
fn run(config: &str, flags: &[&str]) -> Output {
    let folder = Directory::new();
    let path = write(&folder, config);
    let mut command = Command::new(program());
    command.args(["--no-api", "--config-file", &path]).args(flags);
    command.output().unwrap()
}

fn write(folder: &Directory, config: &str) -> String {
    folder.write("disk", vec![0; 8192]);
    folder.write("disk-2", vec![0; 8192]);
    let config = config
        .replace("KERNEL", &file("hello.elf"))
        .replace("DISK", &folder.text("disk"))
        .replace("FOLDER", folder.path("").to_str().unwrap());
    folder.write("fc.json", config)
}

fn boots(config: &str, flags: &[&str]) {
    let output = run(config, flags);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{config}: {said}");
    assert_eq!(output.stdout, b"hello from mayfly\n", "{config}: {said}");
}

/// urunc 0.5.0: always one interface, whose tap has no name when the container has no network.
pub const URUNC_1: &str = r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"Unikraft env.vars=[ A=b ]   vfs.fstab=[ \"initrd0:/:extract:::\" ] -- /app"},
 "machine-config":{"vcpu_count":1,"mem_size_mib":256,"smt":false,"track_dirty_pages":false},
 "drives":[{"drive_id":"rootfs","is_read_only":false,"is_root_device":true,"path_on_host":"DISK"}],
 "network-interfaces":[{"iface_id":"net1","host_dev_name":""}]}"#;
/// urunc 0.7.0: a vsock that is none.
pub const URUNC_2: &str = r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"x","initrd_path":"DISK"},"machine-config":{"vcpu_count":1,"mem_size_mib":256,"smt":false,"track_dirty_pages":false},"drives":[],"network-interfaces":[{"iface_id":"net1","host_dev_name":""}],"vsock":{"guest_cid":0,"uds_path":"","vsock_id":""}}"#;
/// urunc's main: several drives, and nothing that is not there.
pub const URUNC_3: &str = r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"x"},"machine-config":{"vcpu_count":2,"mem_size_mib":256,"smt":false,"track_dirty_pages":false},"drives":[{"drive_id":"rootfs","is_read_only":false,"is_root_device":true,"path_on_host":"DISK"},{"drive_id":"block_1","is_read_only":true,"is_root_device":false,"path_on_host":"DISK-2"}]}"#;

#[test]
fn urunc_boots_by_its_files() {
    in_own_network(|| {
        for config in [URUNC_1, URUNC_2, URUNC_3] {
            boots(config, &[]);
            boots(config, &["--no-seccomp"]);
        }
    });
}

#[test]
fn other_files_boot() {
    for config in [
        // The least there can be.
        r#"{"boot-source":{"kernel_image_path":"KERNEL"}}"#,
        // ops, by its documentation.
        r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"console=ttyS0"},"drives":[{"drive_id":"rootfs","path_on_host":"DISK","is_root_device":true,"is_read_only":false}],"machine-config":{"vcpu_count":1,"mem_size_mib":128,"ht_enabled":false}}"#,
        // Unikraft's sample.
        r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"a","initrd_path":null},"drives":[],"machine-config":{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false},"cpu-config":null,"balloon":null,"network-interfaces":[],"vsock":null,"logger":null,"metrics":null,"mmds-config":null,"entropy":null}"#,
        // Keys that nobody knows.
        r#"{"boot-source":{"kernel_image_path":"KERNEL","colour":"red"},"moon":{"phase":1}}"#,
        // A log and numbers.
        r#"{"boot-source":{"kernel_image_path":"KERNEL"},"logger":{"log_path":"FOLDER/log","level":"debug","show_level":true,"show_log_origin":true},"metrics":{"metrics_path":"FOLDER/metrics"}}"#,
    ] {
        boots(config, &[]);
    }
    boots(
        r#"{"boot-source":{"kernel_image_path":"KERNEL"}}"#,
        &["--id", "a", "--boot-timer"],
    );
}

/// The way that `GET /vm/config` shows a VM makes the same VM.
#[test]
fn what_is_shown_can_be_read_again() {
    let served = ApiProcess::start();
    let disk = served.folder.write("disk", [0; 4096]);
    served.boots("hello.elf");
    let body = format!(r#"{{"drive_id":"rootfs","is_root_device":true,"path_on_host":"{disk}"}}"#);
    served.expect_no_content("PUT", "/drives/rootfs", &body);
    let shown = served.ask("GET", "/vm/config", "").body().to_owned();
    // A disk has one VM at a time.
    let folder = Directory::new();
    let config = folder.write("fc.json", shown);
    fs::rename(disk, folder.path("moved")).unwrap();
    served.folder.write("disk", [0; 4096]);
    let mut again = ApiProcess::with(folder, &["--config-file", &config]);
    again.expect("hello from mayfly\n");
    again.ends_with(0);
    served.terminate();
}

#[test]
fn files_that_make_no_vm_are_refused() {
    for (config, text) in [
        ("", "no JSON object"),
        ("[]", "no JSON object"),
        ("{\"boot-source\":", "no JSON object"),
        ("{}", "boot-source"),
        (r#"{"boot-source":null}"#, "boot-source"),
        (
            r#"{"boot-source":{"kernel_image_path":"/nowhere/k"}}"#,
            "/nowhere/k",
        ),
        (r#"{"boot-source":{"kernel_image_path":"DISK"}}"#, "disk"),
        (
            r#"{"boot-source":{"kernel_image_path":"KERNEL"},"drives":{}}"#,
            "list",
        ),
        (
            r#"{"boot-source":{"kernel_image_path":"KERNEL"},"drives":[{"drive_id":"a","is_root_device":false,"path_on_host":"/nowhere/d"}]}"#,
            "drives[0]",
        ),
        (
            r#"{"boot-source":{"kernel_image_path":"KERNEL"},"machine-config":{"vcpu_count":33,"mem_size_mib":1}}"#,
            "vcpu_count",
        ),
        (
            r#"{"boot-source":{"kernel_image_path":"KERNEL"},"machine-config":{"vcpu_count":1,"mem_size_mib":128,"smt":true}}"#,
            "smt",
        ),
        (
            r#"{"boot-source":{"kernel_image_path":"KERNEL"},"balloon":{"amount_mib":1,"deflate_on_oom":true}}"#,
            "The balloon is not part of mayfly.",
        ),
        (
            r#"{"boot-source":{"kernel_image_path":"KERNEL"},"mmds-config":{"network_interfaces":["1"]}}"#,
            "MMDS is not part of mayfly.",
        ),
        (
            r#"{"boot-source":{"kernel_image_path":"KERNEL"},"vsock":{"guest_cid":3,"uds_path":"/v"}}"#,
            "vsock",
        ),
    ] {
        let output = run(config, &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{config}: {said}");
        assert!(
            said.contains(text) && output.stdout.is_empty(),
            "{config}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_file_and_a_socket_go_together() {
    let folder = Directory::new();
    let config = write(&folder, &URUNC_3.replace("KERNEL", &file("ticker.elf")));
    let mut served = ApiProcess::with(folder, &["--config-file", &config]);
    served.expect("tick 1\n");
    assert_eq!(served.state(), "Running");
    let shown = served.ask("GET", "/vm/config", "").json();
    assert_eq!(shown["machine-config"]["vcpu_count"], 2);
    assert_eq!(shown["drives"].as_array().unwrap().len(), 2);
    served.terminate();
}

#[test]
fn a_file_that_cannot_be_used_leaves_no_socket() {
    let folder = Directory::new();
    let config = write(&folder, "{}");
    let served = ApiProcess::with(Directory::new(), &["--config-file", &config]);
    served.ends_with(1);
}
