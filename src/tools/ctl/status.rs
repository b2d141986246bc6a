//! Status of vCPUs and devices as tables.

use serde_json::Value;

use super::tables::{NOTHING, Table, cell, microseconds, section};

/// Formats the response to `GET /vm/status`, and that to `GET /vm/registers` if it was requested. Each section follows an empty line.
pub(super) fn details(status: &Value, registers: Option<&Value>) -> String {
    let mut text = String::new();
    let unclaimed = unclaimed(&status["unclaimed_accesses"]);
    for (name, table) in [
        ("vCPUs", vcpus(&status["vcpus"], registers)),
        ("devices", devices(&status["devices"])),
        ("unclaimed accesses", unclaimed),
    ] {
        text.push_str(&format!("\n{}", section(name, &table)));
    }
    if let Some(console) = status["console"].as_str().filter(|console| *console != "stdio") {
        text.push_str(&format!("\nThe serial console is at {console}.\n"));
    }
    let is_dead = |response: &Value| response["halted_with_interrupts_off"] == true;
    if is_dead(registers.unwrap_or(status)) {
        text.push_str(
            "\nThe guest has halted with interrupts off. Only a non-maskable interrupt continues it.\n",
        );
    }
    text
}

fn vcpus(list: &Value, registers: Option<&Value>) -> Table {
    let heading = ["id", "state", "processor time", "idle for", "halts"];
    let more: &[&str] = match registers {
        None => &[],
        Some(_) => &["now", "interrupts", "instruction"],
    };
    let mut table = Table::with_heading(&[&heading, more].concat());
    for (index, vcpu) in list.as_array().into_iter().flatten().enumerate() {
        let idle = microseconds(&vcpu["idle_us"]);
        let mut row = vec![
            cell(&vcpu["id"]),
            words(&vcpu["state"]),
            processor_time(vcpu),
            match idle.as_str() {
                NOTHING => idle,
                _ => format!("at least {idle}"),
            },
            cell(&vcpu["halts"]),
        ];
        if let Some(registers) = registers {
            let vcpu = &registers["vcpus"][index];
            row.push(words(&vcpu["state"]));
            row.push(choose(&vcpu["accepts_interrupts"], "on", "off"));
            row.push(cell(&vcpu["instruction_pointer"]));
        }
        table.push_row(row);
    }
    table.or_empty()
}

/// Formats the processor time of a vCPU and its age: `3.1 ms of 61 s`.
fn processor_time(vcpu: &Value) -> String {
    let (time, age) = (microseconds(&vcpu["cpu_time_us"]), microseconds(&vcpu["age_us"]));
    match age.as_str() {
        NOTHING => time,
        _ => format!("{time} of {age}"),
    }
}

fn devices(list: &Value) -> Table {
    let mut table = Table::with_heading(&["id", "kind", "address", "IRQ", "driver", "status", "features"]);
    for device in list.as_array().into_iter().flatten() {
        let status: Vec<_> = elements(&device["status"]).iter().map(words).collect();
        let features: Vec<_> = elements(&device["features"]).iter().map(cell).collect();
        table.push_row(vec![
            cell(&device["id"]),
            words(&device["kind"]),
            cell(&device["address"]),
            cell(&device["irq"]),
            cell(&device["has_driver"]),
            or_else(status.join(", "), "reset"),
            or_else(features.join(" "), NOTHING),
        ]);
    }
    table.or_empty()
}

fn unclaimed(list: &Value) -> Table {
    let mut table = Table::with_heading(&["vCPU", "access", "address", "bytes", "count"]);
    for entry in list.as_array().into_iter().flatten() {
        let direction = choose(&entry["is_write"], "write", "read");
        table.push_row(vec![
            cell(&entry["vcpu_id"]),
            format!("{} {direction}", words(&entry["space"])),
            cell(&entry["address"]),
            cell(&entry["width"]),
            cell(&entry["count"]),
        ]);
    }
    table.or_empty()
}

fn elements(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// Returns `text`, or `other` if it is empty.
fn or_else(text: String, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { text }
}

fn choose(value: &Value, yes: &str, no: &str) -> String {
    match value {
        Value::Bool(true) => yes.to_owned(),
        Value::Bool(false) => no.to_owned(),
        other => cell(other),
    }
}

/// Formats a word of the API such as `FeaturesAccepted` in lower case: `features accepted`.
fn words(word: &Value) -> String {
    let mut text = String::new();
    for letter in cell(word).chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() && !text.ends_with(' ') {
            text.push(' ');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{details, words};

    #[test]
    fn words_are_split() {
        for (word, text) in [
            (json!("FeaturesAccepted"), "features accepted"),
            (json!("Not started"), "not started"),
            (json!(null), "-"),
        ] {
            assert_eq!(words(&word), text);
        }
    }

    #[test]
    fn details_have_a_section_per_list() {
        let status = json!({
            "vcpus": [
                {"id": 0, "state": "Halted", "cpu_time_us": 3100, "age_us": 61_000_000, "idle_us": 12_000_000, "halts": 7},
                {"id": 1, "state": "Running", "cpu_time_us": 20_000, "idle_us": null, "halts": null},
            ],
            "devices": [
                {"kind": "Drive", "id": "a", "address": "0xc0001000", "irq": 5, "has_driver": true,
                    "status": ["Acknowledged", "DriverOk"], "features": ["FLUSH", "VERSION_1"]},
                {"kind": "Interface", "id": "b", "address": "0xc0002000", "irq": 6, "has_driver": false,
                    "status": [], "features": []},
            ],
            "unclaimed_accesses": [
                {"vcpu_id": 0, "space": "Port", "address": "0xcf8", "width": 4, "is_write": true, "count": 9},
                {"vcpu_id": 1, "space": "Memory", "address": "0xd0000000", "width": 8, "is_write": false, "count": 1},
            ],
            "halted_with_interrupts_off": false,
        });
        let devices = "
devices
  id  kind       address     IRQ  driver  status                   features
  a   drive      0xc0001000  5    yes     acknowledged, driver ok  FLUSH VERSION_1
  b   interface  0xc0002000  6    no      reset                    -

unclaimed accesses
  vCPU  access       address     bytes  count
  0     port write   0xcf8       4      9
  1     memory read  0xd0000000  8      1
";
        let vcpus = "
vCPUs
  id  state    processor time  idle for       halts
  0   halted   3.1 ms of 61 s  at least 12 s  7
  1   running  20 ms           -              -
";
        assert_eq!(details(&status, None), format!("{vcpus}{devices}"));
        let registers = json!({
            "vcpus": [
                {"id": 0, "state": "Halted", "accepts_interrupts": false, "instruction_pointer": "0x100012"},
                {"id": 1, "state": null, "accepts_interrupts": null, "instruction_pointer": null},
            ],
            "halted_with_interrupts_off": true,
        });
        let vcpus = "
vCPUs
  id  state    processor time  idle for       halts  now     interrupts  instruction
  0   halted   3.1 ms of 61 s  at least 12 s  7      halted  off         0x100012
  1   running  20 ms           -              -      -       -           -
";
        let end = "\nThe guest has halted with interrupts off. Only a non-maskable interrupt continues it.\n";
        assert_eq!(
            details(&status, Some(&registers)),
            format!("{vcpus}{devices}{end}")
        );
    }

    #[test]
    fn status_before_start_has_empty_sections() {
        let text = "\nvCPUs\n  none\n\ndevices\n  none\n\nunclaimed accesses\n  none\n";
        for status in [json!({"vcpus": [], "devices": []}), json!(null), json!([])] {
            assert_eq!(details(&status, None), text);
        }
        let strange = json!({"vcpus": [null], "devices": [3], "unclaimed_accesses": [[]]});
        details(&strange, Some(&json!({"vcpus": 1})));
    }
}
