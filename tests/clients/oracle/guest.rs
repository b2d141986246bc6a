//! Requests while the guest runs and while it is paused. They need `/dev/kvm`.

use super::case::{Case, Request};
use super::fields::Endpoint;
use super::{Difference, observe};

const LIMITER: &str = r#"{"bandwidth":{"size":1000,"refill_time":100}}"#;
/// Starts a guest with a drive.
const START: [&str; 4] = [
    r#"PUT /machine-config {"vcpu_count":1,"mem_size_mib":64,"track_dirty_pages":true}"#,
    r#"PUT /boot-source {"kernel_image_path":"kernel","boot_args":"a"}"#,
    r#"PUT /drives/d {"drive_id":"d","is_root_device":false,"path_on_host":"disk"}"#,
    r#"PUT /actions {"action_type":"InstanceStart"}"#,
];
const PAUSE: &str = r#"PATCH /vm {"state":"Paused"}"#;
const RESUME: &str = r#"PATCH /vm {"state":"Resumed"}"#;
const CREATE: &str = r#"PUT /snapshot/create {"snapshot_path":"state","mem_file_path":"memory"}"#;
const LOAD: &str = r#"PUT /snapshot/load {"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"}}"#;

/// Endpoints after the start.
const ENDPOINTS: [Endpoint; 4] = [
    Endpoint {
        request: "PATCH /drives/d",
        required: &[("drive_id", &["\"d\"", "\"other\""])],
        optional: &[
            (
                "path_on_host",
                &["\"other\"", "\"missing\"", "\"directory\"", "\"empty\""],
            ),
            (
                "rate_limiter",
                &[
                    LIMITER,
                    r#"{"bandwidth":{"size":0,"refill_time":0},"ops":null}"#,
                    r#"{"ops":{"size":1,"refill_time":1,"one_time_burst":1}}"#,
                    r#"{"ops":{"size":-1,"refill_time":1}}"#,
                    r#"{"ops":{"size":1}}"#,
                ],
            ),
        ],
    },
    Endpoint {
        request: "PATCH /vm",
        required: &[("state", &["\"Paused\"", "\"Resumed\"", "\"paused\""])],
        optional: &[],
    },
    Endpoint {
        request: "PUT /actions",
        required: &[(
            "action_type",
            &[
                "\"FlushMetrics\"",
                "\"SendCtrlAltDel\"",
                "\"InstanceStart\"",
                "\"Stop\"",
            ],
        )],
        optional: &[],
    },
    Endpoint {
        request: "PUT /snapshot/create",
        required: &[
            (
                "snapshot_path",
                &["\"state\"", "\"missing/state\"", "\"directory\""],
            ),
            (
                "mem_file_path",
                &["\"memory\"", "\"missing/memory\"", "\"directory\""],
            ),
        ],
        optional: &[("snapshot_type", &["\"Full\"", "\"Diff\"", "\"full\""])],
    },
];

/// Requests that are valid only before the start, and others.
const SINGLE: [&str; 22] = [
    "GET /",
    "GET /vm/config",
    "GET /machine-config",
    "GET /balloon",
    r#"PUT /machine-config {"vcpu_count":1,"mem_size_mib":128}"#,
    r#"PATCH /machine-config {"mem_size_mib":128}"#,
    "PATCH /machine-config {}",
    r#"PUT /boot-source {"kernel_image_path":"kernel"}"#,
    r#"PUT /boot-source {"kernel_image_path":"missing"}"#,
    "PUT /boot-source {}",
    r#"PUT /drives/e {"drive_id":"e","is_root_device":false,"path_on_host":"other"}"#,
    r#"PUT /drives/d {"drive_id":"d","is_root_device":false,"path_on_host":"missing"}"#,
    r#"PATCH /drives/missing {"drive_id":"missing"}"#,
    r#"PATCH /drives/missing {"drive_id":"missing","path_on_host":"other"}"#,
    r#"PATCH /network-interfaces/missing {"iface_id":"missing"}"#,
    r#"PUT /network-interfaces/e {"iface_id":"e","host_dev_name":"tap0"}"#,
    r#"PUT /logger {"level":"Info"}"#,
    r#"PUT /metrics {"metrics_path":"empty"}"#,
    r#"PUT /vsock {"guest_cid":3,"uds_path":"v.sock"}"#,
    r#"PUT /snapshot/load {"snapshot_path":"missing","mem_backend":{"backend_type":"File","backend_path":"missing"}}"#,
    "PUT /missing {}",
    "GET /missing",
];

/// Requests in one process, in their order.
const SEQUENCES: [(&str, &[&str]); 4] = [
    (
        "life",
        &[
            PAUSE, PAUSE, RESUME, RESUME, CREATE, PAUSE, CREATE, CREATE, LOAD, RESUME,
        ],
    ),
    (
        "drive",
        &[
            r#"PATCH /drives/d {"drive_id":"d","path_on_host":"other"}"#,
            r#"PATCH /drives/d {"drive_id":"d","rate_limiter":{"ops":{"size":10,"refill_time":100}}}"#,
            r#"PATCH /drives/d {"drive_id":"d","rate_limiter":{"bandwidth":{"size":10,"refill_time":100}}}"#,
            r#"PATCH /drives/d {"drive_id":"d","rate_limiter":{"ops":{"size":0,"refill_time":0}}}"#,
            r#"PATCH /drives/d {"drive_id":"d","path_on_host":"missing"}"#,
            PAUSE,
            r#"PATCH /drives/d {"drive_id":"d","path_on_host":"disk"}"#,
        ],
    ),
    (
        "diff snapshots",
        &[
            PAUSE,
            r#"PUT /snapshot/create {"snapshot_type":"Diff","snapshot_path":"state","mem_file_path":"memory"}"#,
            r#"PUT /snapshot/create {"snapshot_type":"Diff","snapshot_path":"state","mem_file_path":"memory"}"#,
            r#"PUT /snapshot/create {"snapshot_type":"Full","snapshot_path":"state2","mem_file_path":"memory2"}"#,
            RESUME,
        ],
    ),
    (
        "keys",
        &[
            r#"PUT /actions {"action_type":"SendCtrlAltDel"}"#,
            PAUSE,
            r#"PUT /actions {"action_type":"SendCtrlAltDel"}"#,
        ],
    ),
];

/// Guest that halts and takes no interrupt.
const KERNEL: &str = "/guests/end-hlt.elf";

fn case(name: &str, setup: &[&str], requests: Vec<Request>) -> Case {
    Case {
        name: name.to_owned(),
        kernel: KERNEL.to_owned(),
        setup: setup.iter().map(|text| Request::parse(text)).collect(),
        requests,
    }
}

/// Sends all requests to a running and to a paused guest.
pub fn observe_guest() -> Vec<Difference> {
    let paused = [&START[..], &[PAUSE]].concat();
    let mut cases = Vec::new();
    for (state, setup) in [("running", &START[..]), ("paused", &paused)] {
        let single = SINGLE.iter().map(|text| Request::parse(text));
        let fields = ENDPOINTS.iter().flat_map(Endpoint::listed_requests);
        let requests = single.chain(fields);
        cases.extend(requests.map(|request| case(state, setup, vec![request])));
    }
    for (name, texts) in SEQUENCES {
        let requests = texts.iter().map(|text| Request::parse(text));
        cases.push(case(name, &START, requests.collect()));
    }
    observe(&cases)
}
