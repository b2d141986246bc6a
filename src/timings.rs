//! The phases of a start as a table and as a trace.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::iter;
use std::time::Duration;

use serde_json::{Value, json};
use vmm::timeline::{Lane, Span};

/// Formats the phases as a table. `exec` is the processor time of the process before `main`: that of the kernel and the C library.
pub fn table(exec: Duration, spans: &[Span]) -> String {
    let mut text = String::from("timings in microseconds\n");
    text.push_str("      start    length  thread  phase\n");
    let _ = writeln!(
        text,
        "  {:>9} {:>9}  {:<7} exec (processor time before main)",
        "",
        micros(exec),
        "main"
    );
    for span in spans {
        let length = if span.length.is_zero() {
            String::from("-")
        } else {
            micros(span.length)
        };
        let (start, lane) = (micros(exec + span.start), lane(span.lane));
        let _ = writeln!(text, "  {start:>9} {length:>9}  {lane:<7} {}", span.name);
    }
    text
}

/// Formats a duration in microseconds.
fn micros(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e6)
}

fn lane(lane: Lane) -> String {
    match lane {
        Lane::Main => "main".into(),
        Lane::Vcpu(id) => format!("vcpu {id}"),
    }
}

/// Writes the phases and `others` in the Trace Event Format, which Perfetto reads.
///
/// # Errors
/// Those of `out`.
pub fn write_trace(
    out: &mut dyn Write,
    exec: Duration,
    spans: &[Span],
    others: &mut dyn Iterator<Item = String>,
) -> io::Result<()> {
    let mut separator = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[";
    for event in phase_events(exec, spans) {
        write!(out, "{separator}{event}")?;
        separator = ",\n";
    }
    for event in others {
        write!(out, "{separator}{event}")?;
    }
    out.write_all(b"]}\n")
}

fn phase_events(exec: Duration, spans: &[Span]) -> Vec<Value> {
    let thread = |lane| match lane {
        Lane::Main => 0,
        Lane::Vcpu(id) => u32::from(id) + 1,
    };
    let mut events = vec![json!({
        "name": "exec", "ph": "X", "pid": 1, "tid": 0, "ts": 0, "dur": exec.as_secs_f64() * 1e6,
    })];
    let vcpus = (0..=u8::MAX).map(Lane::Vcpu);
    let vcpus = vcpus.filter(|vcpu| spans.iter().any(|span| span.lane == *vcpu));
    events.extend(iter::once(Lane::Main).chain(vcpus).map(|id| {
        json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": thread(id), "args": {"name": lane(id)}})
    }));
    events.extend(spans.iter().map(|span| {
        let start = (exec + span.start).as_secs_f64() * 1e6;
        let mut event = json!({"name": span.name, "pid": 1, "tid": thread(span.lane), "ts": start});
        if span.length.is_zero() {
            (event["ph"], event["s"]) = ("i".into(), "t".into());
        } else {
            (event["ph"], event["dur"]) = ("X".into(), (span.length.as_secs_f64() * 1e6).into());
        }
        event
    }));
    events
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmm::timeline::{Lane, Span};

    use super::{table, write_trace};

    fn spans() -> [Span; 2] {
        let span = |name, lane, start, length| Span {
            name,
            lane,
            start: Duration::from_micros(start),
            length: Duration::from_micros(length),
        };
        [
            span("create VM", Lane::Main, 10, 120),
            span("first exit", Lane::Vcpu(3), 400, 0),
        ]
    }

    #[test]
    fn table_counts_from_exec() {
        let text = table(Duration::from_micros(100), &spans());
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines[0], "timings in microseconds");
        assert_eq!(lines[3], "110.0     120.0  main    create VM");
        assert_eq!(lines[4], "500.0         -  vcpu 3  first exit");
    }

    #[test]
    fn trace_is_in_trace_event_format() {
        let mut text = Vec::new();
        let mut others = [serde_json::json!({"name": "other"}).to_string()].into_iter();
        write_trace(&mut text, Duration::from_micros(100), &spans(), &mut others).unwrap();
        let trace: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.last().unwrap()["name"], "other");
        let find = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
        assert_eq!(find("create VM")["ph"], "X");
        assert_eq!(find("create VM")["dur"], 120.0);
        assert_eq!(find("first exit")["ph"], "i");
        assert_eq!(find("first exit")["tid"], 4);
        assert_eq!(events.iter().filter(|event| event["ph"] == "M").count(), 2);
    }
}
