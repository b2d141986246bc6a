//! Requests of orchestrators, and the responses that they require. A client that expects 204 panics on 200.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use vmm::arch::{Architecture, Native, Platform};

use super::config_file::{URUNC_1, URUNC_2, URUNC_3};
use super::http::{Client, NO_CONTENT, fault_response, go_request, json_response};
use super::served::{ApiProcess, Directory, create_fifo, create_tap};
use crate::guests::{file, program};
use crate::network::in_own_network;

/// Returns mayfly under the name `firecracker`.
pub fn firecracker_command(directory: &Directory) -> Command {
    let link = directory.path("firecracker");
    symlink(program(), &link).unwrap();
    Command::new(link)
}

/// Sends `body` with a newline, as Go's encoder does, and expects `response`.
pub fn send_as_go(client: &mut Client, method: &str, path: &str, body: &str, response: &str) {
    let body = if body.is_empty() {
        String::new()
    } else {
        format!("{body}\n")
    };
    client.send(go_request(method, path, &body));
    assert_eq!(client.receive().text, response, "{method} {path} {body}");
}

/// Returns the response to `GET /machine-config`.
fn machine_config(vcpus: u32, memory: u32) -> String {
    json_response(
        200,
        &format!(
            "{{\"vcpu_count\":{vcpus},\"mem_size_mib\":{memory},\"smt\":false,\"track_dirty_pages\":false,\
             \"huge_pages\":\"None\"}}"
        ),
    )
}

/// The body that starts the guest.
pub const START: &str = r#"{"action_type":"InstanceStart"}"#;

/// A request and its complete response.
type Exchange = (&'static str, &'static str, String, String);

/// Returns the requests of the SDK's Machine.Start, with those of its callers.
fn sdk_start(directory: &Directory) -> Vec<Exchange> {
    let (kernel, disk) = (file("ticker.elf"), directory.write("root", [0; 4096]));
    let (log, metrics) = (create_fifo(directory, "log"), create_fifo(directory, "metrics"));
    let no_content_exchange = |path, body| ("PUT", path, body, NO_CONTENT.to_owned());
    vec![
        // Readiness probe.
        ("GET", "/machine-config", String::new(), machine_config(1, 128)),
        no_content_exchange(
            "/logger",
            format!(r#"{{"level":"Info","log_path":"{log}","show_level":true,"show_log_origin":false}}"#),
        ),
        no_content_exchange("/metrics", format!(r#"{{"metrics_path":"{metrics}"}}"#)),
        no_content_exchange(
            "/machine-config",
            r#"{"mem_size_mib":256,"smt":false,"track_dirty_pages":false,"vcpu_count":2}"#.into(),
        ),
        ("GET", "/machine-config", String::new(), machine_config(2, 256)),
        no_content_exchange(
            "/boot-source",
            format!(r#"{{"boot_args":"reboot=k panic=1","kernel_image_path":"{kernel}"}}"#),
        ),
        no_content_exchange(
            "/drives/root",
            format!(
                r#"{{"drive_id":"root","is_read_only":false,"is_root_device":true,"path_on_host":"{disk}"}}"#
            ),
        ),
        no_content_exchange(
            "/network-interfaces/1",
            r#"{"guest_mac":"AA:FC:00:00:00:01","host_dev_name":"tap0","iface_id":"1"}"#.into(),
        ),
        // Only for an interface with MMDS; the SDK then fails.
        (
            "PUT",
            "/mmds/config",
            r#"{"network_interfaces":["1"],"version":"V1"}"#.into(),
            fault_response("MMDS is not part of mayfly."),
        ),
        no_content_exchange("/actions", START.into()),
    ]
}

/// Returns the requests of the SDK for the state, a pause, a snapshot, a drive update, and a shutdown.
fn sdk_operations(directory: &Directory) -> Vec<Exchange> {
    let disk = directory.text("root");
    let no_content_exchange =
        |method, path, body: &str| (method, path, body.to_owned(), NO_CONTENT.to_owned());
    vec![
        (
            "GET",
            "/",
            String::new(),
            json_response(
                200,
                r#"{"id":"c0ffee-1","state":"Running","vmm_version":"1.17.0","app_name":"Firecracker"}"#,
            ),
        ),
        no_content_exchange("PATCH", "/vm", r#"{"state":"Paused"}"#),
        no_content_exchange(
            "PUT",
            "/snapshot/create",
            &format!(r#"{{"mem_file_path":"{disk}.m","snapshot_path":"{disk}.s"}}"#),
        ),
        no_content_exchange("PATCH", "/vm", r#"{"state":"Resumed"}"#),
        no_content_exchange(
            "PATCH",
            "/drives/root",
            &format!(r#"{{"drive_id":"root","path_on_host":"{disk}"}}"#),
        ),
        (
            "PUT",
            "/actions",
            r#"{"action_type":"SendCtrlAltDel"}"#.to_owned(),
            match Native::ARCHITECTURE {
                Architecture::X86_64 => NO_CONTENT.to_owned(),
                Architecture::Aarch64 => fault_response("SendCtrlAltDel does not supported on aarch64."),
            },
        ),
    ]
}

#[test]
fn firecracker_go_sdk() {
    run_go_sdk(&["--no-seccomp"]);
}

/// Files of the running VM are in one directory.
#[test]
fn firecracker_go_sdk_with_allowed_directory() {
    run_go_sdk(&["--allow", "."]);
}

/// Runs the requests of the SDK, with `options` of mayfly, whose working directory is that of all files.
fn run_go_sdk(options: &[&str]) {
    in_own_network(|| {
        create_tap("tap0");
        let directory = Directory::new();
        let socket = directory.text("api.sock");
        let mut command = firecracker_command(&directory);
        command.args(["--api-sock", &socket, "--id", "c0ffee-1"]);
        command.args(options).current_dir(directory.root());
        let mut process = ApiProcess::spawn(directory, &mut command);
        let mut client = process.connect();
        for (method, path, body, response) in sdk_start(&process.directory)
            .iter()
            .chain(&sdk_operations(&process.directory))
        {
            send_as_go(&mut client, method, path, body, response);
        }
        process.expect("tick 1\n");
        // StopVMM sends SIGTERM.
        process.terminate();
    });
}

/// The SDK with a monitor of root, and files in the directory of another user.
#[test]
fn root_monitor_names_lack_of_capabilities() {
    if !scratch::require(scratch::Requirement::Root) {
        return;
    }
    for (options, works) in [(&[][..], false), (&["--keep-capabilities"], true)] {
        let mut process = ApiProcess::start_with(Directory::new(), options);
        process.set_kernel("ticker.elf");
        process.run_action("InstanceStart");
        process.expect("tick 1\n");
        process.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
        let of_user = Directory::new();
        chown(of_user.root(), Some(1000), Some(1000)).unwrap();
        fs::set_permissions(of_user.root(), fs::Permissions::from_mode(0o700)).unwrap();
        let [state, memory] = ["state", "memory"].map(|name| of_user.text(name));
        let body = format!(r#"{{"mem_file_path":"{memory}","snapshot_path":"{state}"}}"#);
        let response = process.request("PUT", "/snapshot/create", &body);
        if works {
            assert_eq!(response.text, NO_CONTENT);
        } else {
            let message = response.fault_message();
            assert!(
                message.contains("has no capabilities") && message.contains("--keep-capabilities"),
                "{message}"
            );
            assert!(of_user.names().is_empty());
        }
        process.terminate();
    }
}

/// kraftkit opens a connection for each request, sends the first request once the socket exists, and starts the guest from
/// another process. It names the interface after its bridge.
#[test]
fn kraftkit() {
    in_own_network(|| {
        create_tap("tap0");
        let directory = Directory::new();
        let socket = directory.text("api.sock");
        let mut command = firecracker_command(&directory);
        command.args([
            "--api-sock",
            &socket,
            "--id",
            "0b6f1a3c-7d52-4c8e-9a55-8f1f6a1c2d3e",
        ]);
        let mut process = ApiProcess::spawn(directory, &mut command);
        let (kernel, initrd) = (
            file("ticker.elf"),
            process.directory.write("initramfs.cpio", [7; 512]),
        );
        let log = process.directory.text("firecracker.log");
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
            send_as_go(&mut process.connect(), method, path, &body, NO_CONTENT);
        }
        process.expect("tick 1\n");
        // kraft ps
        assert_eq!(process.state(), "Running");
        process.terminate();
    });
}

#[test]
fn urunc_config_file() {
    in_own_network(|| {
        for config in [URUNC_1, URUNC_2, URUNC_3] {
            let directory = Directory::new();
            let disk = directory.write("disk", [0; 4096]);
            directory.write("disk-2", [0; 4096]);
            let config = config
                .replace("KERNEL", &file("hello.elf"))
                .replace("DISK", &disk);
            let config = directory.write("fc.json", config);
            let root = directory.text("");
            for options in [&["--no-seccomp"][..], &["--allow", &root]] {
                let mut command = Command::new(program());
                command
                    .arg0("firecracker")
                    .args(["--no-api", "--config-file", &config]);
                let mut process = ApiProcess::spawn(Directory::new(), command.args(options));
                process.expect("hello from mayfly\n");
                process.expect_exit(0);
            }
        }
    });
}

#[test]
fn urunc_socket() {
    run_urunc(&["--no-seccomp"]);
}

#[test]
fn urunc_socket_with_allowed_directory() {
    run_urunc(&["--allow", "."]);
}

/// urunc uses one connection for all requests.
fn run_urunc(options: &[&str]) {
    in_own_network(|| {
        create_tap("tap0");
        let directory = Directory::new();
        let socket = directory.text("api.sock");
        let mut command = firecracker_command(&directory);
        command.args(["--api-sock", &socket]);
        command.args(options).current_dir(directory.root());
        let mut process = ApiProcess::spawn(directory, &mut command);
        let (kernel, disk) = (file("hello.elf"), process.directory.write("disk", [0; 4096]));
        let mut client = process.connect();
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
            send_as_go(&mut client, "PUT", path, &body, NO_CONTENT);
        }
        process.expect("hello from mayfly\n");
        process.expect_exit(0);
    });
}

/// flintlock always configures MMDS, by option and by file. mayfly rejects both: without MMDS the agent in the guest would
/// wait forever.
#[test]
fn flintlock() {
    let directory = Directory::new();
    let render_config = |sections: &str| {
        format!(
            r#"{{"boot-source":{{"kernel_image_path":"{}"}}{sections}}}"#,
            file("hello.elf")
        )
    };
    directory.write("metrics", "");
    let with_all = render_config(&format!(
        r#","drives":[],"machine-config":{{"vcpu_count":1,"mem_size_mib":128,"smt":false}},"network-interfaces":[],"mmds-config":{{"version":"V1","network_interfaces":["eth0"]}},"logger":{{"log_path":"{}","level":"Debug","show_level":true,"show_log_origin":true}},"metrics":{{"metrics_path":"{}"}}"#,
        directory.text("log"),
        directory.text("metrics")
    ));
    let path = directory.write("firecracker.cfg", with_all);
    let metadata = directory.write("metadata.json", "{}");
    let flags = [
        "--id",
        "01GZTE5S6G",
        "--boot-timer",
        "--no-api",
        "--config-file",
        &path,
    ];
    let mut command = firecracker_command(&directory);
    let output = scratch::run(command.args(flags).args(["--metadata", &metadata]));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(153), "{stderr}");
    assert!(
        stderr.contains("--metadata is unsupported: mayfly has no metadata service (MMDS)"),
        "{stderr}"
    );

    let output = scratch::run(Command::new(program()).args(flags));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("MMDS is not part of mayfly."), "{stderr}");

    // Without MMDS the configuration boots.
    fs::write(
        &path,
        fs::read_to_string(&path)
            .unwrap()
            .replace("mmds-config", "no-mmds-config"),
    )
    .unwrap();
    let output = scratch::run(Command::new(program()).args(flags));
    assert_eq!(output.stdout, b"hello from mayfly\n");
    assert_eq!(output.status.code(), Some(0));
}

/// Returns the machine of firectl, and the response that shows it. KVM of aarch64 has no SMT, which Firecracker rejects there too.
fn firectl_machine() -> (String, String) {
    let smt = Native::ARCHITECTURE == Architecture::X86_64;
    let machine = format!(r#"{{"mem_size_mib":512,"smt":{smt},"track_dirty_pages":false,"vcpu_count":2}}"#);
    let shown = machine_config(2, 512);
    let shown = match smt {
        true => shown
            .replace("\"smt\":false", "\"smt\":true")
            .replace("Length: 93", "Length: 92"),
        false => shown,
    };
    (machine, shown)
}

/// firectl always sends `smt`. It leaves the process behind when SIGTERM ends it: the next start finds socket and disk in use.
#[test]
fn firectl() {
    let directory = Directory::new();
    let socket = directory.text("api.sock");
    let disk = directory.write("root", [0; 4096]);
    let start = || {
        let mut command = Command::new(program());
        command.args(["--api-sock", &socket]);
        command
    };
    let mut process = ApiProcess::spawn(directory, &mut start());
    let kernel = file("ticker.elf");
    let mut client = process.connect();
    let drive =
        format!(r#"{{"drive_id":"1","is_read_only":false,"is_root_device":true,"path_on_host":"{disk}"}}"#);
    let (machine, shown) = firectl_machine();
    let boot = format!(
        r#"{{"boot_args":"ro console=ttyS0 noapic reboot=k panic=1 pci=off nomodules","kernel_image_path":"{kernel}"}}"#
    );
    for (path, body) in [
        ("/machine-config", &machine),
        ("/boot-source", &boot),
        ("/drives/1", &drive),
    ] {
        send_as_go(&mut client, "PUT", path, body, NO_CONTENT);
    }
    send_as_go(&mut client, "GET", "/machine-config", "", &shown);
    send_as_go(&mut client, "PUT", "/actions", START, NO_CONTENT);
    process.expect("tick 1\n");

    let holder = format!("process {} (mayfly)", process.id());
    let output = scratch::run(&mut start());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let message = format!(
        "Failed to open the API socket at: {socket}. Check that it is not already used. It belongs to {holder}; end it or"
    );
    assert!(
        output.status.code() == Some(1) && stderr.contains(&message),
        "{stderr}"
    );
    let other = ApiProcess::start();
    let rejected = other.request("PUT", "/drives/1", &drive);
    assert!(
        rejected.fault_message().contains(&format!("{holder} uses it")),
        "{}",
        rejected.text
    );

    // The topology is part of a snapshot.
    let (state, memory) = (process.directory.text("state"), process.directory.text("memory"));
    let create = format!(r#"{{"mem_file_path":"{memory}","snapshot_path":"{state}"}}"#);
    process.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
    process.expect_no_content("PUT", "/snapshot/create", &create);
    let load = format!(r#"{{"mem_file_path":"{memory}","snapshot_path":"{state}"}}"#);
    assert_eq!(other.request("PUT", "/snapshot/load", &load).status(), 204);
    send_as_go(&mut other.connect(), "GET", "/machine-config", "", &shown);
    process.terminate();
    let mut other = other;
    other.expect_no_content("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    other.expect("tick ");
    other.terminate();
}

/// firecracker-rs-sdk sends HTTP/1.0 without any header but the length, on one connection.
#[test]
fn firecracker_rs_sdk() {
    let mut process = ApiProcess::start();
    let kernel = file("ticker.elf");
    let mut client = process.connect();
    let version = process.request("GET", "/version", "").text;
    for (head, body, response) in [
        ("GET /version", String::new(), version.as_str()),
        (
            "PUT /boot-source",
            format!(r#"{{"kernel_image_path":"{kernel}"}}"#),
            NO_CONTENT,
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":128}"#.into(),
            NO_CONTENT,
        ),
        ("PUT /actions", START.into(), NO_CONTENT),
        ("PATCH /vm", r#"{"state":"Paused"}"#.into(), NO_CONTENT),
        ("PATCH /vm", r#"{"state":"Resumed"}"#.into(), NO_CONTENT),
    ] {
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        client.send(format!("{head} HTTP/1.0\r\n{length}\r\n{body}"));
        assert_eq!(client.receive().text, response, "{head}");
    }
    process.expect("tick 1\n");
    process.terminate();
}
