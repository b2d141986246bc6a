//! Configuration files, in the formats of the clients.

use std::fs;
use std::process::{Command, Output};

use vmm::arch::{Architecture, Native, Platform};

use super::output::limiter_without_refill;
use super::served::{ApiProcess, Directory};
use crate::guests::{file, program};
use crate::network::in_own_network;

/// Runs mayfly with `config` and without a socket. KERNEL, DISK and DIRECTORY in `config` stand for paths.
fn run(config: &str, flags: &[&str]) -> Output {
    let directory = Directory::new();
    let path = write_config(&directory, config);
    let mut command = Command::new(program());
    command.args(["--no-api", "--config-file", &path]).args(flags);
    scratch::run(&mut command)
}

fn write_config(directory: &Directory, config: &str) -> String {
    directory.write("disk", vec![0; 8192]);
    directory.write("disk-2", vec![0; 8192]);
    let config = config
        .replace("KERNEL", &file("hello.elf"))
        .replace("DISK", &directory.text("disk"))
        .replace("DIRECTORY", directory.path("").to_str().unwrap());
    directory.write("fc.json", config)
}

fn expect_boot(config: &str, flags: &[&str]) {
    let output = run(config, flags);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{config}: {stderr}");
    assert_eq!(output.stdout, b"hello from mayfly\n", "{config}: {stderr}");
}

/// urunc 0.5.0: always one interface, with an empty tap name for a container without network.
pub const URUNC_1: &str = r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"Unikraft env.vars=[ A=b ]   vfs.fstab=[ \"initrd0:/:extract:::\" ] -- /app"},
 "machine-config":{"vcpu_count":1,"mem_size_mib":256,"smt":false,"track_dirty_pages":false},
 "drives":[{"drive_id":"rootfs","is_read_only":false,"is_root_device":true,"path_on_host":"DISK"}],
 "network-interfaces":[{"iface_id":"net1","host_dev_name":""}]}"#;
/// urunc 0.7.0: an empty vsock.
pub const URUNC_2: &str = r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"x","initrd_path":"DISK"},"machine-config":{"vcpu_count":1,"mem_size_mib":256,"smt":false,"track_dirty_pages":false},"drives":[],"network-interfaces":[{"iface_id":"net1","host_dev_name":""}],"vsock":{"guest_cid":0,"uds_path":"","vsock_id":""}}"#;
/// The main branch of urunc: several drives, no empty sections.
pub const URUNC_3: &str = r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"x"},"machine-config":{"vcpu_count":2,"mem_size_mib":256,"smt":false,"track_dirty_pages":false},"drives":[{"drive_id":"rootfs","is_read_only":false,"is_root_device":true,"path_on_host":"DISK"},{"drive_id":"block_1","is_read_only":true,"is_root_device":false,"path_on_host":"DISK-2"}]}"#;

#[test]
fn urunc_files_boot() {
    in_own_network(|| {
        for config in [URUNC_1, URUNC_2, URUNC_3] {
            expect_boot(config, &[]);
            expect_boot(config, &["--no-seccomp"]);
        }
    });
}

#[test]
fn files_of_other_clients_boot() {
    for config in [
        // Minimum.
        r#"{"boot-source":{"kernel_image_path":"KERNEL"}}"#,
        // ops, from its documentation.
        r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"console=ttyS0"},"drives":[{"drive_id":"rootfs","path_on_host":"DISK","is_root_device":true,"is_read_only":false}],"machine-config":{"vcpu_count":1,"mem_size_mib":128,"ht_enabled":false}}"#,
        // The sample of Unikraft.
        r#"{"boot-source":{"kernel_image_path":"KERNEL","boot_args":"a","initrd_path":null},"drives":[],"machine-config":{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false},"cpu-config":null,"balloon":null,"network-interfaces":[],"vsock":null,"logger":null,"metrics":null,"mmds-config":null,"entropy":null}"#,
        // Unknown keys.
        r#"{"boot-source":{"kernel_image_path":"KERNEL","colour":"red"},"moon":{"phase":1}}"#,
        // Log and metrics.
        r#"{"boot-source":{"kernel_image_path":"KERNEL"},"logger":{"log_path":"DIRECTORY/log","level":"debug","show_level":true,"show_log_origin":true},"metrics":{"metrics_path":"DIRECTORY/metrics"}}"#,
    ] {
        expect_boot(config, &[]);
    }
    expect_boot(
        r#"{"boot-source":{"kernel_image_path":"KERNEL"}}"#,
        &["--id", "a", "--boot-timer"],
    );
}

#[test]
fn serial_section_limits_output() {
    let config = r#"{"boot-source":{"kernel_image_path":"KERNEL"},"serial":{"rate_limiter":LIMITER}}"#;
    let output = run(&config.replace("LIMITER", &limiter_without_refill(5)), &[]);
    assert_eq!(output.stdout, b"hello", "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

/// The response to `GET /vm/config` is a configuration file of the same VM.
#[test]
fn vm_config_is_valid_config_file() {
    let process = ApiProcess::start();
    let disk = process.directory.write("disk", [0; 4096]);
    process.set_kernel("hello.elf");
    let body = format!(r#"{{"drive_id":"rootfs","is_root_device":true,"path_on_host":"{disk}"}}"#);
    process.expect_no_content("PUT", "/drives/rootfs", &body);
    let shown = process.request("GET", "/vm/config", "").body().to_owned();
    // The first VM holds a lock on the disk.
    let directory = Directory::new();
    let config = directory.write("fc.json", shown);
    fs::rename(disk, directory.path("moved")).unwrap();
    process.directory.write("disk", [0; 4096]);
    let mut again = ApiProcess::start_with(directory, &["--config-file", &config]);
    again.expect("hello from mayfly\n");
    again.expect_exit(0);
    process.terminate();
}

#[test]
fn invalid_file_is_rejected() {
    for (config, text) in [
        ("", "the configuration file is invalid: it must be a JSON object"),
        (
            "[]",
            "the configuration file is invalid: it must be a JSON object",
        ),
        (
            "{\"boot-source\":",
            "the configuration file is invalid: it must be a JSON object",
        ),
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
            r#"{"boot-source":{"kernel_image_path":"KERNEL"},"machine-config":{"vcpu_count":3,"mem_size_mib":128,"smt":true}}"#,
            match Native::ARCHITECTURE {
                Architecture::X86_64 => "must be 1 or an even number if SMT is enabled",
                Architecture::Aarch64 => "Enabling simultaneous multithreading is not supported on aarch64",
            },
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
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{config}: {stderr}");
        assert!(
            stderr.contains(text) && output.stdout.is_empty(),
            "{config}: {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn file_and_socket_combine() {
    let directory = Directory::new();
    let config = write_config(&directory, &URUNC_3.replace("KERNEL", &file("ticker.elf")));
    let mut process = ApiProcess::start_with(directory, &["--config-file", &config]);
    process.expect("tick 1\n");
    assert_eq!(process.state(), "Running");
    let shown = process.request("GET", "/vm/config", "").json();
    assert_eq!(shown["machine-config"]["vcpu_count"], 2);
    assert_eq!(shown["drives"].as_array().unwrap().len(), 2);
    process.terminate();
}

#[test]
fn invalid_file_removes_socket() {
    let directory = Directory::new();
    let config = write_config(&directory, "{}");
    let process = ApiProcess::start_with(Directory::new(), &["--config-file", &config]);
    process.expect_exit(1);
}
