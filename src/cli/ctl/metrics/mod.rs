//! The numbers of `GET /metrics` in tables.
//!
//! Nothing in here knows which numbers there are: the labels of a number say what it is of, its name in which unit it is.

mod exposition;
mod grid;
mod histogram;
#[cfg(test)]
mod tests;

use exposition::{Exposition, Sample};
use grid::Grid;
use histogram::Histograms;

pub use exposition::Error;

use super::units;

/// What numbers are of: the label that says so, the heading, and what their names start with.
const SUBJECTS: [(&str, &str, &str); 4] = [
    ("phase", "phases of the start", "boot_phase_"),
    ("vcpu", "vCPUs", "vcpu_"),
    ("drive", "drives", "drive_"),
    ("interface", "network interfaces", "net_"),
];

/// Shows `text`, which is in the text format of Prometheus.
///
/// # Errors
/// [`Error`]
pub fn tables(text: &str) -> Result<String, Error> {
    let exposition = Exposition::parse(text)?;
    let mut general = Grid::new("machine");
    let mut grids = SUBJECTS.map(|(_, heading, _)| Grid::new(heading));
    let mut histograms = Histograms::default();
    let mut put = |name: &str, labels: &[(String, String)], value: String| {
        let place = place(name, labels);
        let grid = place.group.map_or(&mut general, |group| &mut grids[group]);
        grid.put(place.subject, place.measure, value);
    };
    for sample in exposition.samples() {
        if let Some((family, part)) = exposition.histogram_of(sample) {
            histograms.add(family, part, sample);
            continue;
        }
        put(&sample.name, &sample.labels, value(sample));
    }
    for histogram in histograms.finish() {
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            let named = format!("{}_{name}", histogram.name);
            put(&named, histogram.labels, histogram.quantile(share));
        }
        let timed = format!("{}_timed", histogram.name);
        put(&timed, histogram.labels, units::number(histogram.count));
    }
    let sections: Vec<String> = grids
        .iter()
        .chain([&general])
        .filter(|grid| !grid.is_empty())
        .map(Grid::to_string)
        .collect();
    if sections.is_empty() {
        return Ok("there are no metrics\n".to_owned());
    }
    Ok(sections.join("\n"))
}

/// Where a number goes.
struct Place {
    /// Index in [`SUBJECTS`]; none for what is of the machine.
    group: Option<usize>,
    subject: String,
    measure: String,
}

fn place(name: &str, labels: &[(String, String)]) -> Place {
    let label = |wanted: &str| labels.iter().find(|(label, _)| label == wanted);
    let group = SUBJECTS.iter().position(|(key, ..)| label(key).is_some());
    let (key, prefix) = group.map_or(("", ""), |group| (SUBJECTS[group].0, SUBJECTS[group].2));
    let mut subject = label(key).map_or_else(String::new, |(_, value)| value.clone());
    // The same phase is there for each thread that goes through it.
    if let Some((_, thread)) = label("thread").filter(|(_, thread)| key == "phase" && thread != "main") {
        subject = format!("{subject} [{thread}]");
    }
    let name = name.strip_prefix("mayfly_").unwrap_or(name);
    let name = name.strip_prefix(prefix).unwrap_or(name);
    let mut words: Vec<&str> = labels
        .iter()
        .filter(|(label, _)| label != key && label != "thread")
        .map(|(_, value)| value.as_str())
        .collect();
    words.extend(
        name.split('_')
            .filter(|word| !["total", "seconds"].contains(word)),
    );
    Place {
        group,
        subject,
        measure: if words.is_empty() {
            "length".to_owned()
        } else {
            words.join(" ")
        },
    }
}

fn value(sample: &Sample) -> String {
    let unit = |unit| sample.name.split('_').any(|word| word == unit);
    if unit("seconds") {
        units::seconds(sample.value)
    } else if unit("bytes") {
        units::bytes(sample.value)
    } else {
        units::number(sample.value)
    }
}
