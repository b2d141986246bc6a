//! What may be asked before the start, while the guest runs, and while it is paused.

use super::http::{DONE, fault};
use super::served::ApiProcess;
use crate::guests::file;
use crate::network::in_own_network;

/// What is answered.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// 204, and nothing else.
    Done,
    /// The same, and a word about the future.
    Deprecated,
    /// 200 with something in it.
    Shown,
    /// Too late.
    After,
    /// Too early.
    Before,
    /// mayfly has none.
    Absent(&'static str),
    /// Refused, in these words.
    Fault(&'static str),
}

use Answer::{Absent, After, Before, Deprecated, Done, Fault, Shown};

const MISSING: &str = "An error occurred when deserializing the json body of a request: missing field `mem_file_path` at line 1 column 21.";

type Row = (&'static str, &'static str, &'static str, Answer, Answer);

/// Method, path, body, the answer before the start, and that after it, which is the same whether the guest is paused. In bodies,
/// KERNEL, DISK and FOLDER stand for paths.
const ROWS: [Row; 48] = [
    ("GET", "/", "", Shown, Shown),
    ("GET", "/version", "", Shown, Shown),
    ("GET", "/vm/config", "", Shown, Shown),
    ("GET", "/metrics", "", Shown, Shown),
    ("GET", "/openapi.yaml", "", Shown, Shown),
    ("GET", "/machine-config", "", Shown, Shown),
    (
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":1,"mem_size_mib":64}"#,
        Done,
        After,
    ),
    ("PATCH", "/machine-config", r#"{"mem_size_mib":128}"#, Done, After),
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
        Done,
        After,
    ),
    (
        "PUT",
        "/drives/d",
        r#"{"drive_id":"d","is_root_device":false,"path_on_host":"DISK"}"#,
        Done,
        After,
    ),
    ("PATCH", "/drives/d", r#"{"drive_id":"d"}"#, Before, Done),
    ("DELETE", "/drives/d", "", Before, After),
    (
        "PUT",
        "/network-interfaces/br-0",
        r#"{"iface_id":"br-0","host_dev_name":""}"#,
        Done,
        After,
    ),
    (
        "PATCH",
        "/network-interfaces/br-0",
        r#"{"iface_id":"br-0"}"#,
        Before,
        Done,
    ),
    ("DELETE", "/network-interfaces/br-0", "", Before, After),
    ("PUT", "/vsock", r#"{"guest_cid":0,"uds_path":""}"#, Done, After),
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
        r#"{"log_path":"FOLDER/log","level":"Info"}"#,
        Done,
        After,
    ),
    (
        "PUT",
        "/metrics",
        r#"{"metrics_path":"FOLDER/metrics"}"#,
        Done,
        After,
    ),
    (
        "PUT",
        "/serial",
        r#"{"serial_out_path":"FOLDER/serial"}"#,
        Done,
        After,
    ),
    (
        "PUT",
        "/actions",
        r#"{"action_type":"FlushMetrics"}"#,
        Before,
        Done,
    ),
    (
        "PUT",
        "/actions",
        r#"{"action_type":"SendCtrlAltDel"}"#,
        Before,
        Done,
    ),
    ("PATCH", "/vm", r#"{"state":"Paused"}"#, Before, Done),
    (
        "GET",
        "/balloon",
        "",
        Absent("The balloon is"),
        Absent("The balloon is"),
    ),
    (
        "PUT",
        "/balloon",
        r#"{"amount_mib":1,"deflate_on_oom":true}"#,
        Absent("The balloon is"),
        Absent("The balloon is"),
    ),
    (
        "PATCH",
        "/balloon/statistics",
        r#"{"stats_polling_interval_s":1}"#,
        Absent("The balloon is"),
        Absent("The balloon is"),
    ),
    (
        "PUT",
        "/entropy",
        "{}",
        Absent("The entropy device is"),
        Absent("The entropy device is"),
    ),
    ("GET", "/mmds", "", Absent("MMDS is"), Absent("MMDS is")),
    (
        "PUT",
        "/mmds/config",
        r#"{"network_interfaces":["1"]}"#,
        Absent("MMDS is"),
        Absent("MMDS is"),
    ),
    (
        "PUT",
        "/pmem/p",
        r#"{"id":"p","path_on_host":"DISK"}"#,
        Absent("Pmem devices are"),
        Absent("Pmem devices are"),
    ),
    (
        "PUT",
        "/hotplug/memory",
        r#"{"total_size_mib":1024}"#,
        Absent("Memory hot-plug is"),
        Absent("Memory hot-plug is"),
    ),
    (
        "PUT",
        "/cpu-config",
        "{}",
        Absent("CPU configuration is"),
        Absent("CPU configuration is"),
    ),
    ("GET", "/vsock", "", Absent("A vsock is"), Absent("A vsock is")),
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

fn check(served: &ApiProcess, is_started: bool) {
    let mut client = served.connect();
    for (method, path, body, before, after) in ROWS {
        let body = body
            .replace("KERNEL", &file("ticker.elf"))
            .replace("DISK", &served.folder.text("disk"))
            .replace("FOLDER", served.folder.path("").to_str().unwrap());
        let expected = if is_started { after } else { before };
        // All on one connection, which none of them may end.
        let answer = client.ask(method, path, &body);
        let text = match expected {
            Done => DONE.to_owned(),
            Deprecated => DONE.replace("\r\n\r\n", "\r\nDeprecation: true\r\n\r\n"),
            Shown => {
                assert_eq!(answer.status(), 200, "{method} {path}: {answer:?}");
                continue;
            }
            After => fault("The requested operation is not supported after starting the microVM."),
            Before => fault("The requested operation is not supported before starting the microVM."),
            Absent(subject) => fault(&format!("{subject} not part of mayfly.")),
            Fault(text) => fault(text),
        };
        assert_eq!(answer.text, text, "{method} {path} {body}, started: {is_started}");
    }
}

#[test]
fn each_phase_has_its_requests() {
    in_own_network(|| {
        let served = ApiProcess::start();
        served.folder.write("disk", [0; 4096]);
        check(&served, false);
        assert_eq!(served.state(), "Not started");
        served.act("InstanceStart");
        assert_eq!(served.state(), "Running");
        // It pauses the guest, with its last row but some.
        check(&served, true);
        assert_eq!(served.state(), "Paused");
        check(&served, true);
        let again = served.ask("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
        assert_eq!(
            again.text,
            fault("The requested operation is not supported after starting the microVM.")
        );
        served.expect_no_content("PATCH", "/vm", r#"{"state":"Resumed"}"#);
        assert_eq!(served.state(), "Running");
        served.terminate();
    });
}

#[test]
fn what_is_shown_is_what_was_said() {
    let served = ApiProcess::with(super::served::Directory::new(), &["--id", "vm-1"]);
    let shown = served.ask("GET", "/", "");
    let body = r#"{"id":"vm-1","state":"Not started","vmm_version":"1.14.0","app_name":"Firecracker"}"#;
    assert_eq!(shown.text, super::http::json(200, body));
    let shown = served.ask("GET", "/version", "");
    assert_eq!(
        shown.text,
        super::http::json(200, r#"{"firecracker_version":"1.14.0"}"#)
    );
    let machine = |vcpus: u32, memory: u32| {
        let body = format!(
            "{{\"vcpu_count\":{vcpus},\"mem_size_mib\":{memory},\"smt\":false,\"track_dirty_pages\":false,\
             \"huge_pages\":\"None\"}}"
        );
        super::http::json(200, &body)
    };
    assert_eq!(served.ask("GET", "/machine-config", "").text, machine(1, 128));
    served.expect_no_content(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":2,"mem_size_mib":256,"ht_enabled":false}"#,
    );
    served.expect_no_content("PATCH", "/machine-config", r#"{"mem_size_mib":64}"#);
    assert_eq!(served.ask("GET", "/machine-config", "").text, machine(2, 64));
    served.terminate();
}
