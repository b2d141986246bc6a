//! What orchestrators send, as the specification records it, and the answers that they insist on: a client that expects 204 and
//! gets 200 panics, and one that is refused has to be told why.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::config_file::{URUNC_1, URUNC_2, URUNC_3};
use super::http::{Client, DONE, fault, go, json};
use super::served::{ApiProcess, Directory, fifo};
use crate::guests::{file, program};
use crate::network::{in_own_network, output_of};

/// mayfly by Firecracker's name.
pub fn firecracker(folder: &Directory) -> Command {
    let link = folder.path("firecracker");
    symlink(program(), &link).unwrap();
    Command::new(link)
}

/// Sends `body` as Go's encoder writes it, with its end of line; the answer must be `answer`.
pub fn send_as_go(client: &mut Client, method: &str, path: &str, body: &str, answer: &str) {
    let body = if body.is_empty() {
        String::new()
    } else {
        format!("{body}\n")
    };
    client.send(go(method, path, &body));
    assert_eq!(client.receive().text, answer, "{method} {path} {body}");
}

/// The answer to GET /machine-config.
fn machine(vcpus: u32, memory: u32) -> String {
    json(
        200,
        &format!(
            "{{\"vcpu_count\":{vcpus},\"mem_size_mib\":{memory},\"smt\":false,\"track_dirty_pages\":false,\
             \"huge_pages\":\"None\"}}"
        ),
    )
}

/// Starts the guest.
pub const START: &str = r#"{"action_type":"InstanceStart"}"#;

fn make_tap() {
    output_of("ip tuntap add tap0 mode tap");
    output_of("ip link set tap0 up");
}

/// A request, and all of its answer.
type Exchange = (&'static str, &'static str, String, String);

/// What Machine.Start of the SDK sends, with what its callers add.
fn sdk_starts(folder: &Directory) -> Vec<Exchange> {
    let (kernel, disk) = (file("ticker.elf"), folder.write("root", [0; 4096]));
    let (log, metrics) = (fifo(folder, "log"), fifo(folder, "metrics"));
    let done = |path, body| ("PUT", path, body, DONE.to_owned());
    vec![
        // Is it ready?
        ("GET", "/machine-config", String::new(), machine(1, 128)),
        done(
            "/logger",
            format!(r#"{{"level":"Info","log_path":"{log}","show_level":true,"show_log_origin":false}}"#),
        ),
        done("/metrics", format!(r#"{{"metrics_path":"{metrics}"}}"#)),
        done(
            "/machine-config",
            r#"{"mem_size_mib":256,"smt":false,"track_dirty_pages":false,"vcpu_count":2}"#.into(),
        ),
        ("GET", "/machine-config", String::new(), machine(2, 256)),
        done(
            "/boot-source",
            format!(r#"{{"boot_args":"reboot=k panic=1","kernel_image_path":"{kernel}"}}"#),
        ),
        done(
            "/drives/root",
            format!(
                r#"{{"drive_id":"root","is_read_only":false,"is_root_device":true,"path_on_host":"{disk}"}}"#
            ),
        ),
        done(
            "/network-interfaces/1",
            r#"{"guest_mac":"AA:FC:00:00:00:01","host_dev_name":"tap0","iface_id":"1"}"#.into(),
        ),
        // Only with an interface that allows it, which the SDK then fails for.
        (
            "PUT",
            "/mmds/config",
            r#"{"network_interfaces":["1"],"version":"V1"}"#.into(),
            fault("MMDS is not part of mayfly."),
        ),
        done("/actions", START.into()),
    ]
}

/// What it sends when its callers look at the guest, pause it, change a drive, and ask it to shut down.
fn sdk_goes_on(folder: &Directory) -> Vec<Exchange> {
    let disk = folder.text("root");
    let done = |method, path, body: &str| (method, path, body.to_owned(), DONE.to_owned());
    vec![
        (
            "GET",
            "/",
            String::new(),
            json(
                200,
                r#"{"id":"c0ffee-1","state":"Running","vmm_version":"1.14.0","app_name":"Firecracker"}"#,
            ),
        ),
        done("PATCH", "/vm", r#"{"state":"Paused"}"#),
        done(
            "PUT",
            "/snapshot/create",
            &format!(r#"{{"mem_file_path":"{disk}.m","snapshot_path":"{disk}.s"}}"#),
        ),
        done("PATCH", "/vm", r#"{"state":"Resumed"}"#),
        done(
            "PATCH",
            "/drives/root",
            &format!(r#"{{"drive_id":"root","path_on_host":"{disk}"}}"#),
        ),
        done("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#),
    ]
}

#[test]
fn firecracker_go_sdk() {
    in_own_network(|| {
        make_tap();
        let folder = Directory::new();
        let socket = folder.text("api.sock");
        let mut command = firecracker(&folder);
        command.args(["--api-sock", &socket, "--id", "c0ffee-1", "--no-seccomp"]);
        let mut served = ApiProcess::called(folder, &mut command);
        let mut client = served.connect();
        for (method, path, body, answer) in sdk_starts(&served.folder)
            .iter()
            .chain(&sdk_goes_on(&served.folder))
        {
            send_as_go(&mut client, method, path, body, answer);
        }
        served.expect("tick 1\n");
        // StopVMM.
        served.terminate();
    });
}

/// kraftkit makes a connection for each request, sends the first one as soon as it sees the socket, and starts the guest
/// from another process. Its interface is called as its bridge.
#[test]
fn kraftkit() {
    in_own_network(|| {
        make_tap();
        let folder = Directory::new();
        let socket = folder.text("api.sock");
        let mut command = firecracker(&folder);
        command.args([
            "--api-sock",
            &socket,
            "--id",
            "0b6f1a3c-7d52-4c8e-9a55-8f1f6a1c2d3e",
        ]);
        let mut served = ApiProcess::called(folder, &mut command);
        let (kernel, initrd) = (
            file("ticker.elf"),
            served.folder.write("initramfs.cpio", [7; 512]),
        );
        let log = served.folder.text("firecracker.log");
        for (method, path, body) in [
            (
                "PUT",
                "/network-interfaces/kraft-br.0",
                r#"{"guest_mac":"02:b0:b0:00:00:02","host_dev_name":"tap0","iface_id":"kraft-br.0"}"#.into(),
            ),
            (
                "PUT",
                "/machine-config",
                r#"{"mem_size_mib":64,"vcpu_count":1}"#.into(),
            ),
            (
                "PUT",
                "/boot-source",
                format!(
                    r#"{{"boot_args":"ticker.elf netdev.ip=172.16.0.2/24:172.16.0.1 env.vars=[ A=b ] vfs.fstab=[ \"initrd0:/:extract:::\" ] -- /app \"it's\" ","initrd_path":"{initrd}","kernel_image_path":"{kernel}"}}"#
                ),
            ),
            (
                "PUT",
                "/logger",
                format!(r#"{{"level":"Debug","log_path":"{log}","show_level":true,"show_log_origin":true}}"#),
            ),
            ("PUT", "/actions", START.into()),
        ] {
            send_as_go(&mut served.connect(), method, path, &body, DONE);
        }
        served.expect("tick 1\n");
        // kraft ps
        assert_eq!(served.state(), "Running");
        served.terminate();
    });
}

#[test]
fn urunc_by_file() {
    in_own_network(|| {
        for config in [URUNC_1, URUNC_2, URUNC_3] {
            let folder = Directory::new();
            let disk = folder.write("disk", [0; 4096]);
            folder.write("disk-2", [0; 4096]);
            let config = config
                .replace("KERNEL", &file("hello.elf"))
                .replace("DISK", &disk);
            let config = folder.write("fc.json", config);
            let mut command = firecracker(&folder);
            command.args(["--no-api", "--config-file", &config, "--no-seccomp"]);
            let mut served = ApiProcess::called(folder, &mut command);
            served.expect("hello from mayfly\n");
            served.ends_with(0);
        }
    });
}

/// It keeps one connection for all that it asks.
#[test]
fn urunc_by_socket() {
    in_own_network(|| {
        make_tap();
        let folder = Directory::new();
        let socket = folder.text("api.sock");
        let mut command = firecracker(&folder);
        command.args(["--api-sock", &socket, "--no-seccomp"]);
        let mut served = ApiProcess::called(folder, &mut command);
        let (kernel, disk) = (file("hello.elf"), served.folder.write("disk", [0; 4096]));
        let mut client = served.connect();
        for (path, body) in [
            (
                "/machine-config",
                r#"{"vcpu_count":1,"mem_size_mib":256,"smt":false,"track_dirty_pages":false}"#.into(),
            ),
            (
                "/network-interfaces/net1",
                r#"{"iface_id":"net1","guest_mac":"02:b0:b0:00:00:02","host_dev_name":"tap0"}"#.into(),
            ),
            (
                "/drives/rootfs",
                format!(
                    r#"{{"drive_id":"rootfs","is_read_only":false,"is_root_device":true,"path_on_host":"{disk}"}}"#
                ),
            ),
            (
                "/boot-source",
                format!(
                    r#"{{"kernel_image_path":"{kernel}","boot_args":"Unikraft netdev.ip=10.0.0.2/24 -- /app"}}"#
                ),
            ),
            ("/vsock", r#"{"guest_cid":0,"uds_path":""}"#.into()),
            ("/actions", START.into()),
        ] {
            send_as_go(&mut client, "PUT", path, &body, DONE);
        }
        served.expect("hello from mayfly\n");
        served.ends_with(0);
    });
}

/// flintlock always gives its guests metadata, which mayfly refuses by design: without MMDS its agent in the guest would wait
/// for ever. Both places where it asks for it say so.
#[test]
fn flintlock() {
    let folder = Directory::new();
    let config = |rest: &str| {
        format!(
            r#"{{"boot-source":{{"kernel_image_path":"{}"}}{rest}}}"#,
            file("hello.elf")
        )
    };
    folder.write("metrics", "");
    let with_all = config(&format!(
        r#","drives":[],"machine-config":{{"vcpu_count":1,"mem_size_mib":128,"smt":false}},"network-interfaces":[],"mmds-config":{{"version":"V1","network_interfaces":["eth0"]}},"logger":{{"log_path":"{}","level":"Debug","show_level":true,"show_log_origin":true}},"metrics":{{"metrics_path":"{}"}}"#,
        folder.text("log"),
        folder.text("metrics")
    ));
    let path = folder.write("firecracker.cfg", with_all);
    let metadata = folder.write("metadata.json", "{}");
    let flags = [
        "--id",
        "01GZTE5S6G",
        "--boot-timer",
        "--no-api",
        "--config-file",
        &path,
    ];
    let mut command = firecracker(&folder);
    let output = command
        .args(flags)
        .args(["--metadata", &metadata])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(153), "{said}");
    assert!(
        said.contains("--metadata is not part of mayfly: it has no metadata service (MMDS)"),
        "{said}"
    );

    let output = Command::new(program()).args(flags).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("MMDS is not part of mayfly."), "{said}");

    // Everything else of what it sends is taken.
    fs::write(
        &path,
        fs::read_to_string(&path)
            .unwrap()
            .replace("mmds-config", "no-mmds-config"),
    )
    .unwrap();
    let output = Command::new(program()).args(flags).output().unwrap();
    assert_eq!(output.stdout, b"hello from mayfly\n");
    assert_eq!(output.status.code(), Some(0));
}
