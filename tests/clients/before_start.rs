//! Requests before the start of the guest.

use std::process::Command;
use std::thread;

use crate::oracle::case::{Case, Request};
use crate::oracle::fields::Endpoint;
use crate::oracle::{list, observe};

const LIMITER: &str = r#"{"bandwidth":{"size":1000,"refill_time":100}}"#;

/// Endpoints before the start with valid values of their fields.
const ENDPOINTS: [Endpoint; 13] = [
    Endpoint {
        request: "PUT /machine-config",
        required: &[
            ("vcpu_count", &["1", "2", "3", "32", "33", "255", "256"]),
            ("mem_size_mib", &["128", "1", "64", "63"]),
        ],
        optional: &[
            ("smt", &["false", "true"]),
            ("track_dirty_pages", &["true", "false"]),
            ("huge_pages", &["\"None\"", "\"2M\"", "\"none\"", "\"1G\""]),
            ("cpu_template", &["\"None\"", "\"T2\"", "\"C3\"", "\"t2\""]),
            ("ht_enabled", &["false", "true"]),
        ],
    },
    Endpoint {
        request: "PATCH /machine-config",
        required: &[],
        optional: &[
            ("vcpu_count", &["2", "32", "33", "256"]),
            ("mem_size_mib", &["256", "1"]),
            ("smt", &["false", "true"]),
            ("track_dirty_pages", &["true"]),
            ("huge_pages", &["\"None\"", "\"2M\""]),
            ("cpu_template", &["\"None\"", "\"T2\""]),
        ],
    },
    Endpoint {
        request: "PUT /boot-source",
        required: &[(
            "kernel_image_path",
            &[
                "\"kernel\"",
                "\"missing\"",
                "\"directory\"",
                "\"text\"",
                "\"empty\"",
            ],
        )],
        optional: &[
            (
                "initrd_path",
                &["\"disk\"", "\"missing\"", "\"directory\"", "\"empty\""],
            ),
            (
                "boot_args",
                &["\"a=b -- c\"", "\"\\u00e4\"", "\"a\\nb\"", "\"\\u0000\""],
            ),
        ],
    },
    Endpoint {
        request: "PUT /drives/rootfs",
        required: &[
            ("drive_id", &["\"rootfs\"", "\"other\""]),
            ("is_root_device", &["false", "true"]),
            (
                "path_on_host",
                &[
                    "\"disk\"",
                    "\"missing\"",
                    "\"directory\"",
                    "\"text\"",
                    "\"empty\"",
                ],
            ),
        ],
        optional: &[
            ("is_read_only", &["true", "false"]),
            ("partuuid", &["\"0eaa91a0-01\""]),
            ("cache_type", &["\"Unsafe\"", "\"Writeback\"", "\"unsafe\""]),
            ("io_engine", &["\"Sync\"", "\"sync\""]),
            (
                "rate_limiter",
                &[
                    LIMITER,
                    r#"{"ops":{"size":10,"refill_time":1000,"one_time_burst":5}}"#,
                ],
            ),
            ("socket", &["\"missing.sock\""]),
        ],
    },
    Endpoint {
        request: "PATCH /drives/rootfs",
        required: &[("drive_id", &["\"rootfs\"", "\"other\""])],
        optional: &[("path_on_host", &["\"other\""]), ("rate_limiter", &[LIMITER])],
    },
    Endpoint {
        request: "PATCH /network-interfaces/eth0",
        required: &[("iface_id", &["\"eth0\"", "\"other\""])],
        optional: &[("rx_rate_limiter", &[LIMITER]), ("tx_rate_limiter", &[LIMITER])],
    },
    Endpoint {
        request: "PUT /actions",
        required: &[(
            "action_type",
            &[
                "\"FlushMetrics\"",
                "\"SendCtrlAltDel\"",
                "\"InstanceStart\"",
                "\"instancestart\"",
                "\"Stop\"",
            ],
        )],
        optional: &[],
    },
    Endpoint {
        request: "PATCH /vm",
        required: &[("state", &["\"Paused\"", "\"Resumed\"", "\"paused\""])],
        optional: &[],
    },
    Endpoint {
        request: "PUT /snapshot/create",
        required: &[
            ("snapshot_path", &["\"state\""]),
            ("mem_file_path", &["\"memory\""]),
        ],
        optional: &[
            ("snapshot_type", &["\"Full\"", "\"Diff\"", "\"full\""]),
            ("version", &["\"1.0.0\""]),
        ],
    },
    Endpoint {
        request: "PUT /logger",
        required: &[],
        optional: &[
            ("log_path", &["\"log\"", "\"directory\"", "\"missing/log\""]),
            (
                "level",
                &[
                    "\"Info\"",
                    "\"warning\"",
                    "\"WARN\"",
                    "\"Off\"",
                    "\"off\"",
                    "\"Trace\"",
                    "\"debug\"",
                    "\"Error\"",
                ],
            ),
            ("show_level", &["true"]),
            ("show_log_origin", &["true"]),
            ("module", &["\"api_server\""]),
        ],
    },
    Endpoint {
        request: "PUT /metrics",
        required: &[(
            "metrics_path",
            &["\"metrics\"", "\"directory\"", "\"missing/metrics\""],
        )],
        optional: &[],
    },
    Endpoint {
        request: "PUT /vsock",
        required: &[("guest_cid", &["3"]), ("uds_path", &["\"vsock.sock\""])],
        optional: &[("vsock_id", &["\"vsock\""])],
    },
    Endpoint {
        request: "PUT /snapshot/load",
        required: &[("snapshot_path", &["\"missing\""])],
        optional: &[
            ("mem_file_path", &["\"memory\""]),
            (
                "mem_backend",
                &[r#"{"backend_type":"File","backend_path":"memory"}"#],
            ),
            ("resume_vm", &["true"]),
            ("enable_diff_snapshots", &["true"]),
            ("network_overrides", &["[]"]),
        ],
    },
];

fn kernel() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/dist/guests/x86_64/ticker.elf").to_owned()
}

fn case(name: &str, setup: &[&str], requests: Vec<Request>) -> Case {
    Case {
        name: name.to_owned(),
        kernel: kernel(),
        setup: setup.iter().map(|text| Request::parse(text)).collect(),
        requests,
    }
}

/// Each request of `requests` is a case.
fn separate(name: &str, setup: &[&str], requests: impl IntoIterator<Item = Request>) -> Vec<Case> {
    let cases = requests
        .into_iter()
        .map(|request| case(name, setup, vec![request]));
    cases.collect()
}

/// A request with valid values for each path without fields, for unsupported features, and for wrong paths and methods.
const SINGLE: [&str; 44] = [
    "GET /",
    "GET /version",
    "GET /vm/config",
    "GET /machine-config",
    "GET / {}",
    "GET /machine-config {}",
    "GET /metrics",
    "GET /openapi.yaml",
    "GET /vm",
    "GET /actions",
    "GET /boot-source",
    "GET /drives",
    "GET /drives/rootfs",
    "GET /logger",
    "GET /missing",
    "GET /machine-config/",
    "GET //machine-config",
    "GET /machine-config?a=b",
    "PUT /",
    "PUT / {}",
    "PUT /version {}",
    "PUT /missing {}",
    "PATCH /missing {}",
    "PATCH /boot-source {}",
    "PATCH /logger {}",
    "DELETE /",
    "DELETE /drives/rootfs",
    "DELETE /network-interfaces/eth0",
    "DELETE /pmem/p",
    "PUT /drives {}",
    "PUT /drives/ {}",
    "PUT /drives/a/b {}",
    "PUT /network-interfaces {}",
    r#"PUT /entropy {"rate_limiter":null}"#,
    r#"PUT /cpu-config {}"#,
    r#"PUT /balloon {"amount_mib":0,"deflate_on_oom":false}"#,
    r#"PATCH /balloon {"amount_mib":0}"#,
    "GET /balloon",
    "GET /balloon/statistics",
    r#"PATCH /balloon/statistics {"stats_polling_interval_s":1}"#,
    r#"PUT /mmds/config {"network_interfaces":["eth0"]}"#,
    "GET /mmds",
    r#"PUT /mmds {"key":"value"}"#,
    r#"PATCH /mmds {"key":"value"}"#,
];

/// Other requests that one release of Firecracker has and the other lacks.
const NEWER: [&str; 8] = [
    r#"PUT /serial {"serial_out_path":"serial"}"#,
    r#"PUT /serial {"rate_limiter":{"size":10,"refill_time":100}}"#,
    r#"PUT /serial {"rate_limiter":{"size":10}}"#,
    r#"PUT /metrics {"metrics_path":"text","emit_id":true,"properties":{"a":"b"}}"#,
    r#"PUT /metrics {"metrics_path":"text","emit_id":1}"#,
    r#"PUT /metrics {"metrics_path":"text","properties":{"a":1}}"#,
    r#"PUT /pmem/p {"id":"p","path_on_host":"disk"}"#,
    r#"PUT /hotplug/memory {"total_size_mib":1024}"#,
];

/// Identifiers in a path and in the body.
const IDS: [&str; 6] = ["a", "a_b1", "a-b", "a.b", "a:b", "\u{e4}"];

/// Requests in one process, in their order.
const SEQUENCES: [(&str, &[&str]); 13] = [
    (
        "drives",
        &[
            r#"PUT /drives/a {"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#,
            r#"PUT /drives/a {"drive_id":"a","is_root_device":false,"path_on_host":"other"}"#,
            r#"PUT /drives/b {"drive_id":"b","is_root_device":true,"path_on_host":"disk","is_read_only":true}"#,
            r#"PUT /drives/c {"drive_id":"c","is_root_device":true,"path_on_host":"disk","is_read_only":true}"#,
            r#"PUT /drives/b {"drive_id":"b","is_root_device":false,"path_on_host":"disk","is_read_only":true}"#,
            r#"PUT /drives/c {"drive_id":"c","is_root_device":true,"path_on_host":"disk","is_read_only":true}"#,
            r#"PUT /drives/a {"drive_id":"a","is_root_device":false,"path_on_host":"missing"}"#,
            r#"PATCH /drives/a {"drive_id":"a","path_on_host":"disk"}"#,
        ],
    ),
    (
        "configuration",
        &[
            "GET /vm/config",
            r#"PUT /boot-source {"kernel_image_path":"kernel"}"#,
            r#"PUT /drives/a {"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#,
            "GET /vm/config",
            "GET /machine-config",
        ],
    ),
    (
        "two drives on one file",
        &[
            r#"PUT /drives/a {"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#,
            r#"PUT /drives/b {"drive_id":"b","is_root_device":false,"path_on_host":"disk"}"#,
        ],
    ),
    (
        "machine",
        &[
            r#"PUT /machine-config {"vcpu_count":2,"mem_size_mib":256}"#,
            r#"PATCH /machine-config {"mem_size_mib":512}"#,
            r#"PATCH /machine-config {"vcpu_count":4}"#,
            r#"PATCH /machine-config {"track_dirty_pages":true}"#,
            r#"PUT /machine-config {"vcpu_count":1,"mem_size_mib":128}"#,
            r#"PATCH /machine-config {"vcpu_count":33}"#,
        ],
    ),
    (
        "boot source",
        &[
            r#"PUT /boot-source {"kernel_image_path":"kernel","boot_args":"a"}"#,
            r#"PUT /boot-source {"kernel_image_path":"missing"}"#,
            r#"PUT /boot-source {"kernel_image_path":"kernel","initrd_path":"disk"}"#,
            r#"PUT /boot-source {"kernel_image_path":"kernel"}"#,
        ],
    ),
    (
        "logger",
        &[
            r#"PUT /logger {"log_path":"text","level":"Info"}"#,
            r#"PUT /logger {"level":"Debug"}"#,
            r#"PUT /logger {"log_path":"text"}"#,
            r#"PUT /logger {}"#,
        ],
    ),
    (
        "metrics",
        &[
            r#"PUT /metrics {"metrics_path":"text"}"#,
            r#"PUT /metrics {"metrics_path":"empty"}"#,
        ],
    ),
    (
        "start without kernel",
        &[
            r#"PUT /actions {"action_type":"InstanceStart"}"#,
            r#"PUT /machine-config {"vcpu_count":1,"mem_size_mib":128}"#,
            r#"PUT /actions {"action_type":"InstanceStart"}"#,
        ],
    ),
    (
        "load after machine",
        &[
            r#"PUT /machine-config {"vcpu_count":1,"mem_size_mib":128}"#,
            r#"PUT /snapshot/load {"snapshot_path":"missing","mem_backend":{"backend_type":"File","backend_path":"missing"}}"#,
        ],
    ),
    (
        "load after boot source",
        &[
            r#"PUT /boot-source {"kernel_image_path":"kernel"}"#,
            r#"PUT /snapshot/load {"snapshot_path":"missing","mem_backend":{"backend_type":"File","backend_path":"missing"}}"#,
        ],
    ),
    (
        "load after drive",
        &[
            r#"PUT /drives/a {"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#,
            r#"PUT /snapshot/load {"snapshot_path":"missing","mem_backend":{"backend_type":"File","backend_path":"missing"}}"#,
        ],
    ),
    (
        "load after logger",
        &[
            r#"PUT /logger {"level":"Info"}"#,
            r#"PUT /snapshot/load {"snapshot_path":"missing","mem_backend":{"backend_type":"File","backend_path":"missing"}}"#,
            "GET /",
        ],
    ),
    (
        "load of a file that is no snapshot",
        &[
            r#"PUT /snapshot/load {"snapshot_path":"text","mem_backend":{"backend_type":"File","backend_path":"disk"}}"#,
            "GET /",
        ],
    ),
];

/// A request in other forms of HTTP, followed by another one on the same connection.
fn form(name: &str, text: &str) -> Request {
    Request {
        name: name.to_owned(),
        parts: vec![
            text.as_bytes().to_vec(),
            b"GET /version HTTP/1.1\r\n\r\n".to_vec(),
        ],
    }
}

/// Forms of the request line, and headers.
const FORMS: [(&str, &str); 25] = [
    ("GET / HTTP/1.0", ""),
    ("GET / HTTP/1.0", "Connection: keep-alive\r\n"),
    ("GET / HTTP/1.1", "Connection: close\r\n"),
    ("GET / HTTP/2.0", ""),
    ("GET http://localhost/version HTTP/1.1", "Host: localhost\r\n"),
    ("GET http://localhost HTTP/1.1", ""),
    ("GET version HTTP/1.1", ""),
    ("GET /version HTTP/1.1", ""),
    ("POST /version HTTP/1.1", ""),
    ("PROPFIND /version HTTP/1.1", ""),
    ("OPTIONS / HTTP/1.1", ""),
    ("TRACE / HTTP/1.1", ""),
    ("get /version HTTP/1.1", ""),
    ("GET  /version HTTP/1.1", ""),
    ("GET /version", ""),
    ("GET /version HTTP/1.1", "Host\r\n"),
    ("GET /version HTTP/1.1", "Host:\r\n"),
    ("GET /version HTTP/1.1", "X-Unknown: value\r\n"),
    ("GET /version HTTP/1.1", "Accept: text/html\r\n"),
    ("GET /version HTTP/1.1", "Accept-Encoding: identity;q=0\r\n"),
    ("GET /version HTTP/1.1", "Accept-Encoding: gzip\r\n"),
    ("GET /version HTTP/1.1", "Content-Length: x\r\n"),
    ("GET /version HTTP/1.1", "Content-Length: -1\r\n"),
    ("GET /version HTTP/1.1", "Content-Length: 0\r\n"),
    ("PUT /machine-config HTTP/1.1", ""),
];

/// Versions and headers of a request with a body.
const BODY_FORMS: [(&str, &str); 4] = [
    ("HTTP/1.0", ""),
    ("HTTP/1.1", "Content-Type: text/plain\r\n"),
    ("HTTP/1.1", "content-type: application/json\r\n"),
    ("HTTP/1.1", "Content-Length: 35\r\n"),
];

/// Requests in other forms of HTTP.
fn http_requests() -> Vec<Request> {
    let body = r#"{"vcpu_count":1,"mem_size_mib":128}"#;
    let name = |line: &str, headers: &str| {
        let text = format!("{line} {}", headers.trim_end());
        text.trim_end().to_owned()
    };
    let forms = FORMS.iter().map(|(line, headers)| {
        let text = format!("{line}\r\n{headers}\r\n");
        form(&name(line, headers), &text)
    });
    let with_body = BODY_FORMS.iter().map(|(version, headers)| {
        let line = format!("PUT /machine-config {version}");
        let length = body.len();
        let text = format!("{line}\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        form(&name(&line, headers), &text)
    });
    // One part: Firecracker sends further responses to the rest. Of a long path or header its seccomp filter may end it.
    let text = format!(
        "PUT /mmds HTTP/1.1\r\nContent-Length: 51201\r\n\r\n{}",
        "x".repeat(51201)
    );
    let long = Request {
        name: "a body above the limit".to_owned(),
        parts: vec![text.into_bytes()],
    };
    forms.chain(with_body).chain([long]).collect()
}

fn sequences() -> Vec<Case> {
    let sequences = SEQUENCES.iter().map(|(name, texts)| {
        let requests = texts.iter().map(|text| Request::parse(text));
        case(name, &[], requests.collect())
    });
    sequences.collect()
}

/// Each interface and its taps. Another interface exists before.
fn interfaces() -> Vec<Case> {
    let endpoint = Endpoint {
        request: "PUT /network-interfaces/eth0",
        required: &[
            ("iface_id", &["\"eth0\"", "\"other\""]),
            (
                "host_dev_name",
                &["\"tap0\"", "\"lo\"", "\"name-with-16-char\"", "\"a/b\""],
            ),
        ],
        optional: &[
            (
                "guest_mac",
                &[
                    "\"02:00:00:00:00:01\"",
                    "\"01:00:00:00:00:01\"",
                    "\"02:00:00:00:00\"",
                    "\"02-00-00-00-00-01\"",
                    "\"02:00:00:00:00:0G\"",
                    "\"02:00:00:00:00:07\"",
                    "\"AA:BB:CC:DD:EE:FF\"",
                ],
            ),
            ("rx_rate_limiter", &[LIMITER]),
            ("tx_rate_limiter", &[LIMITER]),
        ],
    };
    let other = r#"PUT /network-interfaces/other {"iface_id":"other","host_dev_name":"tap1","guest_mac":"02:00:00:00:00:07"}"#;
    let mut cases = separate("with an interface", &[other], endpoint.requests());
    let requests = [
        r#"PUT /network-interfaces/other {"iface_id":"other","host_dev_name":"tap1","guest_mac":"02:00:00:00:00:08"}"#,
        r#"PUT /network-interfaces/eth0 {"iface_id":"eth0","host_dev_name":"tap1"}"#,
        r#"PUT /network-interfaces/eth0 {"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:08"}"#,
        r#"PATCH /network-interfaces/other {"iface_id":"other"}"#,
        "GET /vm/config",
        r#"PUT /snapshot/load {"snapshot_path":"missing","mem_backend":{"backend_type":"File","backend_path":"missing"}}"#,
    ];
    let requests = requests.iter().map(|text| Request::parse(text));
    cases.push(case("interfaces", &[other], requests.collect()));
    cases
}

#[test]
fn fields_before_start() {
    let mut cases = Vec::new();
    for endpoint in &ENDPOINTS {
        cases.extend(separate("not started", &[], endpoint.requests()));
    }
    list::check("fields", &observe(&cases));
}

#[test]
fn requests_before_start() {
    let single = SINGLE.iter().chain(&NEWER).map(|text| Request::parse(text));
    let mut cases = separate("not started", &[], single);
    for id in IDS {
        let body = format!(r#"{{"drive_id":"{id}","is_root_device":false,"path_on_host":"disk"}}"#);
        let request = Request::new("PUT", &format!("/drives/{id}"), Some(&body));
        cases.extend(separate("not started", &[], [request]));
    }
    cases.extend(separate("HTTP", &[], http_requests()));
    cases.extend(sequences());
    list::check("requests", &observe(&cases));
}

#[test]
fn interfaces_before_start() {
    in_own_network(|| {
        for tap in ["tap0", "tap1"] {
            let output = scratch::run(Command::new("ip").args(["tuntap", "add", tap, "mode", "tap"]));
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        list::check("interfaces", &observe(&interfaces()));
    });
}

/// Runs `test` on a thread in a new network namespace, if the host permits it.
#[allow(clippy::disallowed_methods, reason = "each wait of `test` has a limit")]
fn in_own_network(test: impl FnOnce() + Send) {
    if !scratch::require(scratch::Requirement::NetworkNamespace) {
        return;
    }
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call takes no pointer and affects this thread only.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            test();
        });
        thread.join().unwrap();
    });
}
