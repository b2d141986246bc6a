//! Requests of kata, in Go and in Rust. Its agent in the guest requires a vsock, which mayfly rejects as unsupported. mayfly
//! accepts all other requests.

use std::fs;
use std::process::Command;

use super::http::NO_CONTENT;
use super::replay::{START, firecracker_command, send_as_go};
use super::served::{ApiProcess, Directory, create_fifo};
use crate::guests::{file, program};

/// kata in Go: a configuration file with nine drives, a vsock and both FIFOs, then a request for the instance state.
#[test]
fn kata_go() {
    let directory = Directory::new();
    let version = scratch::run(firecracker_command(&directory).arg("--version"));
    assert!(version.stdout.starts_with(b"Firecracker v1.17.0\n"));
    fs::remove_file(directory.path("firecracker")).unwrap();
    let (socket, kernel) = (directory.text("api.sock"), file("ticker.elf"));
    let drive = |index: usize| {
        let stub = directory.write(&format!("drive_{index}"), "");
        format!(
            r#"{{"drive_id":"drive_{index}","path_on_host":"{stub}","is_root_device":false,"is_read_only":false}}"#
        )
    };
    let drives: Vec<String> = (0..8).map(drive).collect();
    let root = directory.write("root", [0; 4096]);
    let (log, metrics) = (
        create_fifo(&directory, "logs.fifo"),
        create_fifo(&directory, "metrics.fifo"),
    );
    let config = format!(
        r#"{{"boot-source":{{"kernel_image_path":"{kernel}","boot_args":"a=b"}},"machine-config":{{"vcpu_count":1,"mem_size_mib":256,"smt":false}},"drives":[{{"drive_id":"rootfs","path_on_host":"{root}","is_root_device":true,"is_read_only":true}},{}],"vsock":{{"guest_cid":3,"uds_path":"{}","vsock_id":"root"}},"network-interfaces":[],"logger":{{"log_path":"{log}","level":"Debug","show_level":true,"show_log_origin":true}},"metrics":{{"metrics_path":"{metrics}"}}}}"#,
        drives.join(","),
        directory.text("kata.hvsock")
    );
    let path = directory.write("fcConfig.json", &config);
    let flags = ["--api-sock", &socket, "--config-file", &path];
    let output = scratch::run(Command::new(program()).args(flags));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("\"vsock\"") && stderr.contains("not part of mayfly"),
        "{stderr}"
    );

    fs::write(&path, config.replace("\"vsock\"", "\"no-vsock\"")).unwrap();
    let mut command = firecracker_command(&directory);
    command.args(flags);
    let mut process = ApiProcess::spawn(directory, &mut command);
    scratch::wait_until("the start of the guest", || process.state() == "Running");
    process.expect("tick 1\n");
    // kata finds vCPU threads by name, to move them into a cgroup.
    let threads = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    let names: Vec<_> = threads
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap())
        .collect();
    assert!(names.contains(&"fc_vcpu 0\n".to_owned()), "{names:?}");
    let hot = process.directory.write("hot", [0; 8192]);
    let body = format!(r#"{{"drive_id":"drive_3","path_on_host":"{hot}"}}"#);
    send_as_go(
        &mut process.connect(),
        "PATCH",
        "/drives/drive_3",
        &body,
        NO_CONTENT,
    );
    process.terminate();
}

/// kata in Rust, with hyper: the root and five drives, a rejected vsock, and no FIFO.
#[test]
fn runtime_rs() {
    let mut process = ApiProcess::start();
    let (kernel, disk) = (file("hello.elf"), process.directory.write("disk", [0; 4096]));
    let request = |method: &str, path: &str, body: &str| {
        let mut client = process.connect();
        client.send(format!(
            "{method} {path} HTTP/1.1\r\naccept: application/json\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nhost: 2f746d702f782e736f636b\r\n\r\n{body}",
            body.len()
        ));
        client.receive().text
    };
    let machine = r#"{"mem_size_mib":256,"vcpu_count":1}"#;
    assert_eq!(request("PUT", "/machine-config", machine), NO_CONTENT);
    let boot = format!(r#"{{"boot_args":"panic=1","kernel_image_path":"{kernel}"}}"#);
    assert_eq!(request("PUT", "/boot-source", &boot), NO_CONTENT);
    for (index, id) in ["rootfs", "drive1", "drive2", "drive3", "drive4", "drive5"]
        .iter()
        .enumerate()
    {
        let body = format!(
            r#"{{"drive_id":"{id}","is_read_only":true,"is_root_device":{},"path_on_host":"{disk}"}}"#,
            index == 0
        );
        assert_eq!(request("PUT", &format!("/drives/{id}"), &body), NO_CONTENT);
    }
    let vsock = r#"{"guest_cid":3,"uds_path":"/tmp/kata.hvsock"}"#;
    let rejected = request("PUT", "/vsock", vsock);
    assert!(
        rejected.starts_with("HTTP/1.1 400 \r\n") && rejected.contains("not part of mayfly"),
        "{rejected}"
    );
    assert_eq!(request("PUT", "/actions", START), NO_CONTENT);
    process.expect("hello from mayfly\n");
    process.expect_exit(0);
}
