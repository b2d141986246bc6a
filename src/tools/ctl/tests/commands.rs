use std::time::Duration;

use api::client::Client;

use super::super::instances;
use super::{DONE, ctl, ok, response, serve};

const INSTANCE: &str = r#"{"id":"vm1","state":"Running","vmm_version":"0.1.0","app_name":"Firecracker"}"#;

const CONFIG: &str = r#"{
    "balloon": null, "logger": null, "vsock": null,
    "boot-source": {"kernel_image_path": "/k", "initrd_path": null, "boot_args": "a=b"},
    "machine-config": {"vcpu_count": 2, "mem_size_mib": 128, "smt": false},
    "drives": [{"drive_id": "root", "path_on_host": "/disk", "is_root_device": true, "is_read_only": false,
        "cache_type": "Unsafe", "io_engine": "Sync",
        "rate_limiter": {"ops": {"size": 50, "refill_time": 1000}}}],
    "network-interfaces": [],
    "serial": {"serial_out_path": "/log"}
}"#;

fn printed(line: &str, responses: &[String]) -> String {
    ctl(line, "", responses).result.unwrap()
}

const STATUS: &str = r#"{"id":"vm1","state":"Running","vcpus":[
    {"id":0,"state":"Halted","cpu_time_us":3100,"idle_us":null,"halts":null}
],"devices":[],"unclaimed_accesses":[],"halted_with_interrupts_off":false}"#;

const REGISTERS: &str = r#"{"vcpus":[
    {"id":0,"state":"Halted","accepts_interrupts":true,"instruction_pointer":"0x10"}
],"halted_with_interrupts_off":false}"#;

/// The table of [`INSTANCE`] and [`CONFIG`].
const TABLE: &str = "id          vm1\nstate       Running\nprogram     Firecracker 0.1.0\nkernel      /k\n\
    vCPUs       2\nmemory      128 MiB\ndrives      1\ninterfaces  0\n";

#[test]
fn status_is_a_table_with_sections() {
    let outcome = ctl("status", "", &[ok(INSTANCE), ok(CONFIG), ok(STATUS)]);
    assert_eq!(outcome.requests, ["GET /", "GET /vm/config", "GET /vm/status"]);
    let sections = "\ndevices\n  none\n\nunclaimed accesses\n  none\n";
    assert_eq!(
        outcome.result.unwrap(),
        format!(
            "{TABLE}\nvCPUs\n  id  state   processor time  idle for  halts\n  0   halted  3.1 ms          -         -\n{sections}"
        )
    );
}

#[test]
fn status_with_registers_requests_them_last() {
    let responses = [ok(INSTANCE), ok(CONFIG), ok(STATUS), ok(REGISTERS)];
    let outcome = ctl("status --registers", "", &responses);
    assert_eq!(outcome.requests[2..], ["GET /vm/status", "GET /vm/registers"]);
    let text = outcome.result.unwrap();
    assert!(text.contains("  halted  on          0x10\n"), "{text}");
    let outcome = ctl("status --registers --json", "", &[ok(REGISTERS)]);
    assert_eq!(outcome.requests, ["GET /vm/registers"]);
    assert_eq!(outcome.result.unwrap().trim_end(), REGISTERS);
}

#[test]
fn server_without_status_has_short_table() {
    let rejection = response(
        400,
        r#"{"fault_message":"Invalid request method and/or path: GET vm/status."}"#,
    );
    let outcome = ctl("status", "", &[ok(INSTANCE), ok(CONFIG), rejection.clone()]);
    assert_eq!(outcome.result.unwrap(), TABLE);
    let outcome = ctl("--json status", "", &[rejection.clone(), ok(INSTANCE)]);
    assert_eq!(outcome.requests, ["GET /vm/status", "GET /"]);
    assert_eq!(outcome.result.unwrap().trim_end(), INSTANCE);
    // The registers were requested explicitly.
    let outcome = ctl("status --registers", "", &[ok(INSTANCE), ok(CONFIG), rejection]);
    assert!(outcome.result.is_err());
}

#[test]
fn config_has_a_section_per_part() {
    assert_eq!(
        printed("config", &[ok(CONFIG)]),
        "\
machine
  mem_size    128 MiB
  smt         no
  vcpu_count  2

boot
  boot_args          a=b
  kernel_image_path  /k

drives
  id    path   root  read-only  cache   engine  limits
  root  /disk  yes   no         Unsafe  Sync    50 ops in 1 s

network interfaces
  none

serial
  serial_out_path  /log
"
    );
}

#[test]
fn unexpected_json_leaves_gaps_in_tables() {
    for body in [
        "null",
        "[]",
        "{}",
        r#"{"drives":3,"machine-config":[1]}"#,
        r#"{"drives":[null]}"#,
    ] {
        printed("config", &[ok(body)]);
        printed("status", &[ok(body), ok(body), ok(body)]);
        printed("status --registers", &[ok(body), ok(body), ok(body), ok(body)]);
    }
}

#[test]
fn metrics_are_printed_unchanged() {
    let text = "# TYPE mayfly_memory_bytes gauge\nmayfly_memory_bytes 1048576\n";
    let outcome = ctl("metrics", "", &[ok(text)]);
    assert_eq!(outcome.requests, ["GET /metrics"]);
    assert_eq!(outcome.result.unwrap(), text);
}

#[test]
fn actions_send_one_request_and_confirm() {
    for (line, request, confirmation) in [
        (
            "start",
            r#"PUT /actions {"action_type":"InstanceStart"}"#,
            "started",
        ),
        ("pause", r#"PATCH /vm {"state":"Paused"}"#, "paused"),
        ("resume", r#"PATCH /vm {"state":"Resumed"}"#, "resumed"),
        (
            "stop",
            r#"PUT /actions {"action_type":"SendCtrlAltDel"}"#,
            "Ctrl-Alt-Del sent; a guest that handles it shuts down or reboots",
        ),
        (
            "suspend",
            r#"PATCH /scale-to-zero {"action":"Suspend"}"#,
            "suspended",
        ),
        (
            "cancel-suspend",
            r#"PATCH /scale-to-zero {"action":"Cancel"}"#,
            "suspend cancelled; the guest resumes",
        ),
        (
            "ready",
            r#"PATCH /scale-to-zero {"action":"Ready"}"#,
            "ready; the cool-down begins",
        ),
        (
            "flush-metrics",
            r#"PUT /actions {"action_type":"FlushMetrics"}"#,
            "metrics written to the metrics file, if one is configured",
        ),
        (
            "drive root",
            r#"PATCH /drives/root {"drive_id":"root"}"#,
            "changed",
        ),
        (
            "drive a/b --path /new --bandwidth 1M/100 --ops off",
            "PATCH /drives/a%2Fb {\"drive_id\":\"a/b\",\"path_on_host\":\"/new\",\"rate_limiter\":{\"bandwidth\":\
             {\"refill_time\":100,\"size\":1048576},\"ops\":{\"refill_time\":0,\"size\":0}}}",
            "changed",
        ),
        (
            "net eth-0 --rx-ops 5/10/7 --tx-bandwidth 1/1",
            "PATCH /network-interfaces/eth-0 {\"iface_id\":\"eth-0\",\"rx_rate_limiter\":{\"ops\":\
             {\"one_time_burst\":7,\"refill_time\":10,\"size\":5}},\"tx_rate_limiter\":{\"bandwidth\":\
             {\"refill_time\":1,\"size\":1}}}",
            "changed",
        ),
    ] {
        let outcome = ctl(line, "", &[DONE.into()]);
        assert_eq!(outcome.requests, [request], "{line}");
        assert_eq!(outcome.result.unwrap(), format!("{confirmation}\n"), "{line}");
        assert_eq!(printed(&format!("{line} --json"), &[DONE.into()]), "", "{line}");
    }
}

#[test]
fn json_option_prints_body_unchanged() {
    for (line, body) in [
        ("--json status", STATUS),
        ("--json config", CONFIG),
        ("--json metrics", "# TYPE a counter\na 1\n"),
        ("--json config", "not even JSON"),
    ] {
        let text = printed(line, &[ok(body)]);
        assert_eq!(text.trim_end(), body.trim_end(), "{line}");
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{line}");
    }
}

#[test]
fn request_sends_any_method_and_path() {
    for (line, stdin, request) in [
        ("request get /version", "unread", "GET /version"),
        ("request PUT /x {\"a\":1}", "unread", "PUT /x {\"a\":1}"),
        ("request PUT /x?y=z -", "{\"b\":\n2}", "PUT /x?y=z {\"b\":\n2}"),
    ] {
        let outcome = ctl(line, stdin, &[ok("openapi: 3.0.0")]);
        assert_eq!(outcome.requests, [request]);
        assert_eq!(outcome.result.unwrap(), "openapi: 3.0.0\n");
    }
    assert_eq!(printed("request DELETE /x", &[response(204, "")]), "");
}

#[test]
fn instances_of_all_pages_are_a_table() {
    let first = r#"{"instances":[{"id":"a","state":"suspended","reason":"registered","wakes":0,"pid":null}],"next":"a"}"#;
    let second = r#"{"instances":[{"id":"b","state":"running","reason":"r","wakes":2,"pid":7}],"next":null}"#;
    let outcome = ctl("instances", "", &[ok(first), ok(second)]);
    assert_eq!(
        outcome.requests,
        ["GET /instances?limit=1000", "GET /instances?limit=1000&after=a"]
    );
    assert_eq!(
        outcome.result.unwrap(),
        "id  state      wakes  process  reason\na   suspended  0      -        registered\nb   running    2      7        r\n"
    );
}

#[test]
fn wake_waits_for_the_state() {
    let state = |state: &str| ok(&format!(r#"{{"id":"a","state":"{state}","reason":"r"}}"#));
    let outcome = ctl("wake a", "", &[DONE.into(), state("waking"), state("running")]);
    assert_eq!(
        outcome.requests,
        [
            r#"PUT /instances/a/state {"state":"wake"}"#,
            "GET /instances/a",
            "GET /instances/a"
        ]
    );
    assert_eq!(outcome.result.unwrap(), "a is running\n");
    // Without the wait for a change that has ended.
    for (line, end) in [
        ("suspend a", "running"),
        ("wake a", "suspended"),
        ("wake a", "failed"),
        ("suspend a", "failed"),
    ] {
        let outcome = ctl(line, "", &[DONE.into(), state(end)]);
        let message = outcome.result.unwrap_err().to_string();
        assert_eq!(
            message,
            format!("cannot {line}: it is {end}: r; see mayfly ctl instance a")
        );
    }
    let (directory, serving) = serve(&[state("waking")]);
    let client = Client::new(directory.path("api.sock"), scratch::TIMEOUT);
    let error = instances::wait(&client, "a", "wake", Duration::ZERO).unwrap_err();
    scratch::join(serving);
    assert_eq!(
        error.to_string(),
        "cannot await the wake of a within 0 s: it is waking: r; raise --timeout"
    );
    let running = r#"{"id":"a","reason":"r","state":"running"}"#;
    assert_eq!(
        printed("wake a --json", &[DONE.into(), state("running")]),
        format!("{running}\n")
    );
    assert_eq!(printed("delete a", &[DONE.into()]), "deleted\n");
    let instance = ok(r#"{"id":"a","state":"failed","reason":"r","wakes":1,"config":{"drives":[1]}}"#);
    assert!(printed("instance a", &[instance]).ends_with("drives      [1]\n"));
}
