//! What kata sends, in Go and in Rust. Its agent in the guest needs a vsock, which mayfly has not: that is what it is told, and all
//! else is taken.

use std::fs;
use std::process::Command;

use super::http::DONE;
use super::replay::{START, firecracker, send_as_go};
use super::served::{ApiProcess, Directory, fifo};
use crate::guests::{file, program};

/// kata in Go: a file with nine drives and both FIFOs, then the question whether it runs. Its vsock is what mayfly has not.
#[test]
fn kata_go() {
    let folder = Directory::new();
    let version = firecracker(&folder).arg("--version").output().unwrap();
    assert!(version.stdout.starts_with(b"Firecracker v1.14.0\n"));
    fs::remove_file(folder.path("firecracker")).unwrap();
    let (socket, kernel) = (folder.text("api.sock"), file("ticker.elf"));
    let drive = |index: usize| {
        let stub = folder.write(&format!("drive_{index}"), "");
        format!(
            r#"{{"drive_id":"drive_{index}","path_on_host":"{stub}","is_root_device":false,"is_read_only":false}}"#
        )
    };
    let drives: Vec<String> = (0..8).map(drive).collect();
    let root = folder.write("root", [0; 4096]);
    let (log, metrics) = (fifo(&folder, "logs.fifo"), fifo(&folder, "metrics.fifo"));
    let config = format!(
        r#"{{"boot-source":{{"kernel_image_path":"{kernel}","boot_args":"a=b"}},"machine-config":{{"vcpu_count":1,"mem_size_mib":256,"smt":false}},"drives":[{{"drive_id":"rootfs","path_on_host":"{root}","is_root_device":true,"is_read_only":true}},{}],"vsock":{{"guest_cid":3,"uds_path":"{}","vsock_id":"root"}},"network-interfaces":[],"logger":{{"log_path":"{log}","level":"Debug","show_level":true,"show_log_origin":true}},"metrics":{{"metrics_path":"{metrics}"}}}}"#,
        drives.join(","),
        folder.text("kata.hvsock")
    );
    let path = folder.write("fcConfig.json", &config);
    let flags = ["--api-sock", &socket, "--config-file", &path];
    let output = Command::new(program()).args(flags).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("\"vsock\"") && said.contains("not part of mayfly"),
        "{said}"
    );

    fs::write(&path, config.replace("\"vsock\"", "\"no-vsock\"")).unwrap();
    let mut command = firecracker(&folder);
    command.args(flags);
    let mut served = ApiProcess::called(folder, &mut command);
    while served.state() != "Running" {
        std::thread::yield_now();
    }
    served.expect("tick 1\n");
    // It puts the vCPUs' threads, which it knows by their names, into their group.
    let threads = fs::read_dir(format!("/proc/{}/task", served.id())).unwrap();
    let names: Vec<_> = threads
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap())
        .collect();
    assert!(names.contains(&"fc_vcpu 0\n".to_owned()), "{names:?}");
    let hot = served.folder.write("hot", [0; 8192]);
    let body = format!(r#"{{"drive_id":"drive_3","path_on_host":"{hot}"}}"#);
    send_as_go(&mut served.connect(), "PATCH", "/drives/drive_3", &body, DONE);
    served.terminate();
}

/// kata in Rust, by hyper: the root and five drives, a vsock that is refused, and a FIFO nowhere.
#[test]
fn runtime_rs() {
    let mut served = ApiProcess::start();
    let (kernel, disk) = (file("hello.elf"), served.folder.write("disk", [0; 4096]));
    let ask = |method: &str, path: &str, body: &str| {
        let mut client = served.connect();
        client.send(format!(
            "{method} {path} HTTP/1.1\r\naccept: application/json\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nhost: 2f746d702f782e736f636b\r\n\r\n{body}",
            body.len()
        ));
        client.receive().text
    };
    let machine = r#"{"mem_size_mib":256,"vcpu_count":1}"#;
    assert_eq!(ask("PUT", "/machine-config", machine), DONE);
    let boot = format!(r#"{{"boot_args":"panic=1","kernel_image_path":"{kernel}"}}"#);
    assert_eq!(ask("PUT", "/boot-source", &boot), DONE);
    for (index, id) in ["rootfs", "drive1", "drive2", "drive3", "drive4", "drive5"]
        .iter()
        .enumerate()
    {
        let body = format!(
            r#"{{"drive_id":"{id}","is_read_only":true,"is_root_device":{},"path_on_host":"{disk}"}}"#,
            index == 0
        );
        assert_eq!(ask("PUT", &format!("/drives/{id}"), &body), DONE);
    }
    let vsock = r#"{"guest_cid":3,"uds_path":"/tmp/kata.hvsock"}"#;
    let refused = ask("PUT", "/vsock", vsock);
    assert!(
        refused.starts_with("HTTP/1.1 400 \r\n") && refused.contains("not part of mayfly"),
        "{refused}"
    );
    assert_eq!(ask("PUT", "/actions", START), DONE);
    served.expect("hello from mayfly\n");
    served.ends_with(0);
}
