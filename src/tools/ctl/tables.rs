//! Responses as tables: the instance and the configuration of a VM.

use std::fmt;

use serde_json::Value;

use crate::printable::printable;

/// Cell of an absent value.
pub(super) const NOTHING: &str = "-";

/// Sections of the configuration with a layout of their own.
const SECTIONS: [&str; 4] = ["machine-config", "boot-source", "drives", "network-interfaces"];

/// Formats the responses to `GET /` and `GET /vm/config` as a short table, the first part of the status.
pub(super) fn status(instance: &Value, config: &Value) -> String {
    let machine = &config["machine-config"];
    let count = |key: &str| config[key].as_array().map_or(0, Vec::len).to_string();
    let program = format!(
        "{} {}",
        cell(&instance["app_name"]),
        cell(&instance["vmm_version"])
    );
    let mut table = Table::new();
    for (name, value) in [
        ("id", cell(&instance["id"])),
        ("state", cell(&instance["state"])),
        ("program", program),
        ("kernel", cell(&config["boot-source"]["kernel_image_path"])),
        ("vCPUs", cell(&machine["vcpu_count"])),
        ("memory", mebibytes(&machine["mem_size_mib"])),
        ("drives", count("drives")),
        ("interfaces", count("network-interfaces")),
    ] {
        table.push_row(vec![name.to_owned(), value]);
    }
    table.to_string()
}

/// Formats the response to `GET /vm/config`: a section for each part.
pub(super) fn config(config: &Value) -> String {
    let mut sections = vec![
        section("machine", &fields(&config["machine-config"])),
        section("boot", &fields(&config["boot-source"])),
        section("drives", &drives(&config["drives"])),
        section("network interfaces", &interfaces(&config["network-interfaces"])),
    ];
    let rest = config.as_object().into_iter().flatten();
    for (name, value) in rest.filter(|(name, value)| !SECTIONS.contains(&name.as_str()) && !value.is_null()) {
        sections.push(section(name, &fields(value)));
    }
    sections.join("\n")
}

pub(super) fn section(name: &str, table: &Table) -> String {
    let text = table.to_string();
    let lines: String = text.lines().map(|line| format!("  {line}\n")).collect();
    if lines.is_empty() {
        return format!("{name}\n  none\n");
    }
    format!("{name}\n{lines}")
}

/// Returns the fields of `section` that have a value.
fn fields(section: &Value) -> Table {
    let mut table = Table::new();
    let fields = section.as_object().into_iter().flatten();
    for (name, value) in fields.filter(|(_, value)| !value.is_null()) {
        match name.strip_suffix("_mib") {
            Some(name) => table.push_row(vec![name.to_owned(), mebibytes(value)]),
            None => table.push_row(vec![name.clone(), cell(value)]),
        }
    }
    table
}

fn drives(list: &Value) -> Table {
    let mut table = Table::with_heading(&["id", "path", "root", "read-only", "cache", "engine", "limits"]);
    for drive in list.as_array().into_iter().flatten() {
        let of = |key: &str| cell(&drive[key]);
        table.push_row(vec![
            of("drive_id"),
            of("path_on_host"),
            of("is_root_device"),
            of("is_read_only"),
            of("cache_type"),
            of("io_engine"),
            limiter(&drive["rate_limiter"]),
        ]);
    }
    table.or_empty()
}

fn interfaces(list: &Value) -> Table {
    let mut table = Table::with_heading(&["id", "device", "MAC", "MTU", "receive limits", "transmit limits"]);
    for interface in list.as_array().into_iter().flatten() {
        let of = |key: &str| cell(&interface[key]);
        table.push_row(vec![
            of("iface_id"),
            of("host_dev_name"),
            of("guest_mac"),
            of("mtu"),
            limiter(&interface["rx_rate_limiter"]),
            limiter(&interface["tx_rate_limiter"]),
        ]);
    }
    table.or_empty()
}

/// Rows of cells; each column is as wide as its widest cell.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    pub(super) fn with_heading(heading: &[&str]) -> Self {
        let mut table = Self::new();
        table.push_row(heading.iter().map(|name| (*name).to_owned()).collect());
        table
    }

    /// Appends a row, with control characters escaped: a cell may hold text of another process.
    pub(super) fn push_row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// Returns the table, or an empty one if it has a heading only.
    pub(super) fn or_empty(self) -> Self {
        if self.rows.len() > 1 { self } else { Self::new() }
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |row: &Vec<String>, column| row.get(column).map_or(0, |cell: &String| cell.chars().count());
        let widest = |column| self.rows.iter().map(|row| width(row, column)).max();
        (0..columns).map(|column| widest(column).unwrap_or(0)).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                line.push_str(&format!("{gap}{cell:<width$}"));
            }
            writeln!(formatter, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Formats a JSON value as a cell.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) if text.is_empty() => NOTHING.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Formats a rate limiter of the API: `10 MiB in 100 ms after 1 MiB, 50 ops in 1 s`.
fn limiter(limiter: &Value) -> String {
    let operations = |count| format!("{} ops", number(count));
    let buckets: Vec<_> = [
        bucket(&limiter["bandwidth"], bytes),
        bucket(&limiter["ops"], operations),
    ]
    .into_iter()
    .flatten()
    .collect();
    if buckets.is_empty() {
        return NOTHING.to_owned();
    }
    buckets.join(", ")
}

/// Formats a token bucket, unless it limits nothing.
fn bucket(bucket: &Value, format: fn(f64) -> String) -> Option<String> {
    let tokens = |key: &str| bucket[key].as_f64().filter(|count| *count != 0.0);
    let size = tokens("size")?;
    let time = tokens("refill_time")?;
    let mut text = format!("{} in {}", format(size), seconds(time / 1e3));
    if let Some(burst) = tokens("one_time_burst") {
        text.push_str(&format!(" after {}", format(burst)));
    }
    Some(text)
}

/// Formats a size that the API gives in MiB.
fn mebibytes(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| cell(value), |count| bytes(count * 1_048_576.0))
}

const UNITS: [(&str, f64); 4] = [
    ("TiB", 1_099_511_627_776.0),
    ("GiB", 1_073_741_824.0),
    ("MiB", 1_048_576.0),
    ("KiB", 1024.0),
];

/// Formats a number of bytes: `1.5 KiB`, `128 MiB`.
fn bytes(count: f64) -> String {
    match UNITS.iter().find(|(_, unit)| count.abs() >= *unit) {
        Some((name, unit)) => format!("{} {name}", round(count / unit)),
        None => format!("{} B", number(count)),
    }
}

/// Formats a time that the API gives in microseconds.
pub(super) fn microseconds(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| cell(value), |count| seconds(count / 1e6))
}

/// Formats a time in seconds: `12 us`, `1.5 ms`.
fn seconds(time: f64) -> String {
    let size = time.abs();
    if size >= 1.0 || size.is_nan() {
        format!("{} s", round(time))
    } else if size >= 1e-3 {
        format!("{} ms", round(time * 1e3))
    } else if size > 0.0 {
        format!("{} us", round(time * 1e6))
    } else {
        "0".to_owned()
    }
}

/// Formats a number without a unit.
fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        format!("{value:.0}")
    } else {
        format!("{value}")
    }
}

/// Rounds to three significant digits, and omits trailing zeros.
fn round(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use serde_json::json;

    use super::{Table, bytes, cell, limiter, number, seconds};

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::with_heading(&["id", "path", "ro"]);
        table.push_row(vec!["rootfs".into(), "/é".into(), "yes".into()]);
        table.push_row(vec!["a".into(), "/long path".into(), "no".into()]);
        assert_eq!(
            table.to_string(),
            "id      path        ro\nrootfs  /é          yes\na       /long path  no\n"
        );
        assert_eq!(Table::new().to_string(), "");
    }

    #[test]
    fn cell_control_characters_are_escaped() {
        let mut table = Table::new();
        table.push_row(vec!["a\u{1b}[2J\nb".into()]);
        assert_eq!(table.to_string(), "a\\u{1b}[2J\\nb\n");
        assert_eq!(cell(&json!("")), "-");
        assert_eq!(cell(&json!(null)), "-");
        assert_eq!(cell(&json!(true)), "yes");
        assert_eq!(cell(&json!(["x", 1])), "[\"x\",1]");
    }

    #[test]
    fn limiter_is_formatted() {
        let both = json!({
            "bandwidth": {"size": 10 << 20, "refill_time": 100, "one_time_burst": 1024},
            "ops": {"size": 50, "refill_time": 1000},
        });
        assert_eq!(limiter(&both), "10 MiB in 100 ms after 1 KiB, 50 ops in 1 s");
        for none in [
            json!(null),
            json!({}),
            json!({"ops": null}),
            json!({"ops": {"size": 0, "refill_time": 0}}),
            json!("x"),
        ] {
            assert_eq!(limiter(&none), "-");
        }
    }

    #[test]
    fn numbers_have_three_significant_digits() {
        for (count, text) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1024.0, "1 KiB"),
            (1536.0, "1.5 KiB"),
            (134_217_728.0, "128 MiB"),
            (2e12, "1.82 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (time, text) in [
            (0.0, "0"),
            (0.000_000_5, "0.5 us"),
            (0.000_012, "12 us"),
            (0.001_234, "1.23 ms"),
            (0.1, "100 ms"),
            (61.25, "61.2 s"),
            (f64::INFINITY, "inf s"),
        ] {
            assert_eq!(seconds(time), text);
        }
        assert_eq!((number(3.0), number(0.5)), ("3".into(), "0.5".into()));
    }

    proptest! {
        #[test]
        fn any_number_is_formatted(value in any::<f64>()) {
            let _ = (bytes(value), seconds(value), number(value));
        }
    }
}
