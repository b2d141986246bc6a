//! Requests before the start, while the guest runs, and while it is paused.

use vmm::arch::{Architecture, Native, Platform};

use super::http::{NO_CONTENT, fault_response};
use super::served::ApiProcess;
use crate::guests::file;
use crate::network::in_own_network;

/// Expected response.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// 204 without a body.
    NoContent,
    /// 204 with a Deprecation header.
    Deprecated,
    /// 200 with a body.
    Content,
    /// 400: not supported after the start.
    After,
    /// 400: not supported before the start.
    Before,
    /// 400: unsupported by mayfly.
    Unsupported(&'static str),
    /// 400 with this fault message.
    Fault(&'static str),
}

use Expected::{After, Before, Content, Deprecated, Fault, NoContent, Unsupported};

const MISSING: &str = "An error occurred when deserializing the json body of a request: missing field `mem_file_path` at line 1 column 21.";

/// Responses to SendCtrlAltDel, before and after the start: aarch64 has no keyboard.
const CTRL_ALT_DEL: [Expected; 2] = match Native::ARCHITECTURE {
    Architecture::X86_64 => [Before, NoContent],
    Architecture::Aarch64 => [Before, Fault("SendCtrlAltDel does not supported on aarch64.")],
};

type Row = (&'static str, &'static str, &'static str, Expected, Expected);

/// Method, path, body, and the response before and after the start. A pause makes no difference. KERNEL, DISK and DIRECTORY
/// in bodies stand for paths.
const ROWS: [Row; 50] = [
    ("GET", "/", "", Content, Content),
    ("GET", "/version", "", Content, Content),
    ("GET", "/vm/config", "", Content, Content),
    ("GET", "/vm/status", "", Content, Content),
    ("GET", "/vm/registers", "", Content, Content),
    ("GET", "/metrics", "", Content, Content),
    ("GET", "/openapi.yaml", "", Content, Content),
    ("GET", "/machine-config", "", Content, Content),
    (
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":1,"mem_size_mib":64}"#,
        NoContent,
        After,
    ),
    (
        "PATCH",
        "/machine-config",
        r#"{"mem_size_mib":128}"#,
        NoContent,
        After,
    ),
    (
        "PATCH",
        "/machine-config",
        "{}",
        Fault("Empty PATCH request."),
        Fault("Empty PATCH request."),
    ),
    (
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path":"KERNEL","boot_args":"a -- b "}"#,
        NoContent,
        After,
    ),
    (
        "PUT",
        "/drives/d",
        r#"{"drive_id":"d","is_root_device":false,"path_on_host":"DISK"}"#,
        NoContent,
        After,
    ),
    ("PATCH", "/drives/d", r#"{"drive_id":"d"}"#, Before, NoContent),
    ("DELETE", "/drives/d", "", Before, After),
    (
        "PUT",
        "/network-interfaces/br-0",
        r#"{"iface_id":"br-0","host_dev_name":""}"#,
        NoContent,
        After,
    ),
    (
        "PATCH",
        "/network-interfaces/br-0",
        r#"{"iface_id":"br-0"}"#,
        Before,
        NoContent,
    ),
    ("DELETE", "/network-interfaces/br-0", "", Before, After),
    (
        "PUT",
        "/vsock",
        r#"{"guest_cid":0,"uds_path":""}"#,
        NoContent,
        After,
    ),
    (
        "PUT",
        "/vsock",
        r#"{"guest_cid":0,"uds_path":"","vsock_id":""}"#,
        Deprecated,
        After,
    ),
    (
        "PUT",
        "/logger",
        r#"{"log_path":"DIRECTORY/log","level":"Info"}"#,
        NoContent,
        After,
    ),
    (
        "PUT",
        "/metrics",
        r#"{"metrics_path":"DIRECTORY/metrics"}"#,
        NoContent,
        After,
    ),
    (
        "PUT",
        "/serial",
        r#"{"serial_out_path":"DIRECTORY/serial"}"#,
        NoContent,
        After,
    ),
    (
        "PUT",
        "/actions",
        r#"{"action_type":"FlushMetrics"}"#,
        Before,
        NoContent,
    ),
    (
        "PUT",
        "/actions",
        r#"{"action_type":"SendCtrlAltDel"}"#,
        CTRL_ALT_DEL[0],
        CTRL_ALT_DEL[1],
    ),
    ("PATCH", "/vm", r#"{"state":"Paused"}"#, Before, NoContent),
    (
        "GET",
        "/balloon",
        "",
        Unsupported("The balloon is"),
        Unsupported("The balloon is"),
    ),
    (
        "PUT",
        "/balloon",
        r#"{"amount_mib":1,"deflate_on_oom":true}"#,
        Unsupported("The balloon is"),
        Unsupported("The balloon is"),
    ),
    (
        "PATCH",
        "/balloon/statistics",
        r#"{"stats_polling_interval_s":1}"#,
        Unsupported("The balloon is"),
        Unsupported("The balloon is"),
    ),
    (
        "PUT",
        "/entropy",
        "{}",
        Unsupported("The entropy device is"),
        Unsupported("The entropy device is"),
    ),
    ("GET", "/mmds", "", Unsupported("MMDS is"), Unsupported("MMDS is")),
    (
        "PUT",
        "/mmds/config",
        r#"{"network_interfaces":["1"]}"#,
        Unsupported("MMDS is"),
        Unsupported("MMDS is"),
    ),
    (
        "PUT",
        "/pmem/p",
        r#"{"id":"p","path_on_host":"DISK"}"#,
        Unsupported("Pmem devices are"),
        Unsupported("Pmem devices are"),
    ),
    (
        "PUT",
        "/hotplug/memory",
        r#"{"total_size_mib":1024}"#,
        Unsupported("Memory hot-plug is"),
        Unsupported("Memory hot-plug is"),
    ),
    (
        "PUT",
        "/cpu-config",
        "{}",
        Unsupported("CPU configuration is"),
        Unsupported("CPU configuration is"),
    ),
    (
        "GET",
        "/vsock",
        "",
        Unsupported("A vsock is"),
        Unsupported("A vsock is"),
    ),
    (
        "GET",
        "/nothing",
        "",
        Fault("Invalid request method and/or path: GET nothing."),
        Fault("Invalid request method and/or path: GET nothing."),
    ),
    (
        "PUT",
        "/",
        "{}",
        Fault("Invalid request method and/or path: PUT ."),
        Fault("Invalid request method and/or path: PUT ."),
    ),
    (
        "POST",
        "/actions",
        "{}",
        Fault("Invalid request method and/or path: POST actions."),
        Fault("Invalid request method and/or path: POST actions."),
    ),
    (
        "GET",
        "/",
        "{}",
        Fault("GET request cannot have a body."),
        Fault("GET request cannot have a body."),
    ),
    (
        "PUT",
        "/actions",
        "",
        Fault("Empty PUT request."),
        Fault("Empty PUT request."),
    ),
    (
        "PATCH",
        "/vm",
        "",
        Fault("Empty PATCH request."),
        Fault("Empty PATCH request."),
    ),
    (
        "PUT",
        "/drives/d",
        r#"{"drive_id":"e","is_root_device":false,"path_on_host":"DISK"}"#,
        Fault("The id from the path does not match the id from the body!"),
        Fault("The id from the path does not match the id from the body!"),
    ),
    (
        "PUT",
        "/drives/",
        r#"{"drive_id":"","is_root_device":false,"path_on_host":"DISK"}"#,
        Fault("The ID cannot be empty."),
        Fault("The ID cannot be empty."),
    ),
    (
        "PATCH",
        "/network-interfaces",
        r#"{"iface_id":""}"#,
        Fault("The ID cannot be empty."),
        Fault("The ID cannot be empty."),
    ),
    (
        "PATCH",
        "/drives/x",
        r#"{"drive_id":"x"}"#,
        Before,
        Fault("Drive config error: cannot change drive \"x\": there is no such drive; choose one of: d"),
    ),
    (
        "PATCH",
        "/network-interfaces/x",
        r#"{"iface_id":"x"}"#,
        Before,
        Fault(
            "Network config error: cannot change network interface \"x\": there is no such network interface; choose one of: br-0",
        ),
    ),
    (
        "PUT",
        "/snapshot/create",
        r#"{"snapshot_path":"s"}"#,
        Fault(MISSING),
        Fault(MISSING),
    ),
    (
        "PUT",
        "/snapshot/load",
        r#"{"snapshot_path":"s","mem_file_path":"m"}"#,
        Fault(
            "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.",
        ),
        After,
    ),
    (
        "PUT",
        "/snapshot/load",
        r#"{"snapshot_path":"s","mem_file_path":"m","vsock_override":{}}"#,
        Fault("The field vsock_override cannot be {}: vsock is not part of mayfly."),
        Fault("The field vsock_override cannot be {}: vsock is not part of mayfly."),
    ),
];

fn check_rows(process: &ApiProcess, is_started: bool) {
    let mut client = process.connect();
    for (method, path, body, before, after) in ROWS {
        let body = body
            .replace("KERNEL", &file("ticker.elf"))
            .replace("DISK", &process.directory.text("disk"))
            .replace("DIRECTORY", process.directory.path("").to_str().unwrap());
        let expected = if is_started { after } else { before };
        // One connection for all requests: no response may close it.
        let response = client.request(method, path, &body);
        let text = match expected {
            NoContent => NO_CONTENT.to_owned(),
            Deprecated => NO_CONTENT.replace("\r\n\r\n", "\r\nDeprecation: true\r\n\r\n"),
            Content => {
                assert_eq!(response.status(), 200, "{method} {path}: {response:?}");
                continue;
            }
            After => fault_response("The requested operation is not supported after starting the microVM."),
            Before => fault_response("The requested operation is not supported before starting the microVM."),
            Unsupported(subject) => fault_response(&format!("{subject} not part of mayfly.")),
            Fault(text) => fault_response(text),
        };
        // A rejection of a deprecated field is marked as well, once the body has been read.
        let text = match body.contains("\"mem_file_path\":\"m\"}") {
            true => text.replace("keep-alive\r\n", "keep-alive\r\nDeprecation: true\r\n"),
            false => text,
        };
        assert_eq!(
            response.text, text,
            "{method} {path} {body}, started: {is_started}"
        );
    }
}

#[test]
fn requests_depend_on_instance_state() {
    in_own_network(|| {
        let process = ApiProcess::start();
        process.directory.write("disk", [0; 4096]);
        check_rows(&process, false);
        assert_eq!(process.state(), "Not started");
        process.run_action("InstanceStart");
        assert_eq!(process.state(), "Running");
        // A row pauses the guest.
        check_rows(&process, true);
        assert_eq!(process.state(), "Paused");
        check_rows(&process, true);
        let again = process.request("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
        assert_eq!(
            again.text,
            fault_response("The requested operation is not supported after starting the microVM.")
        );
        process.expect_no_content("PATCH", "/vm", r#"{"state":"Resumed"}"#);
        assert_eq!(process.state(), "Running");
        process.terminate();
    });
}

#[test]
fn get_returns_configured_values() {
    let process = ApiProcess::start_with(super::served::Directory::new(), &["--id", "vm-1"]);
    let shown = process.request("GET", "/", "");
    let body = r#"{"id":"vm-1","state":"Not started","vmm_version":"1.17.0","app_name":"Firecracker"}"#;
    assert_eq!(shown.text, super::http::json_response(200, body));
    let shown = process.request("GET", "/version", "");
    assert_eq!(
        shown.text,
        super::http::json_response(200, r#"{"firecracker_version":"1.17.0"}"#)
    );
    let machine = |vcpus: u32, memory: u32| {
        let body = format!(
            "{{\"vcpu_count\":{vcpus},\"mem_size_mib\":{memory},\"smt\":false,\"track_dirty_pages\":false,\
             \"huge_pages\":\"None\"}}"
        );
        super::http::json_response(200, &body)
    };
    assert_eq!(
        process.request("GET", "/machine-config", "").text,
        machine(1, 128)
    );
    process.expect_no_content(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":2,"mem_size_mib":256,"ht_enabled":false}"#,
    );
    process.expect_no_content("PATCH", "/machine-config", r#"{"mem_size_mib":64}"#);
    assert_eq!(process.request("GET", "/machine-config", "").text, machine(2, 64));
    process.terminate();
}
