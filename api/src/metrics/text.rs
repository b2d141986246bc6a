//! The text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// What may be done with the values of a family.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// They only grow. The name ends in `_total`.
    Counter,
    /// They go up and down.
    Gauge,
    /// They are counted by size. The name ends in the unit.
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A text that grows by one family after the other.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a family, of which all samples are to be added before the next one begins. One without any is not there.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        Family {
            text: &mut self.0,
            name,
            head: Some((kind, help)),
        }
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

/// The samples of one name.
#[derive(Debug)]
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    /// What comes before the first sample, until it was written.
    head: Option<(Kind, &'static str)>,
}

impl Family<'_> {
    /// Adds a sample. No other may have the same labels.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// Adds a histogram: each of `buckets` is a bound in microseconds and what is up to it, `count` is all there is.
    pub(super) fn histogram(
        &mut self,
        labels: &[(&str, &str)],
        buckets: impl Iterator<Item = (u64, u64)>,
        sum_us: u64,
        count: u64,
    ) {
        for (bound, count) in buckets {
            self.line("_bucket", labels, Some(&seconds(bound).to_string()), count);
        }
        self.line("_bucket", labels, Some("+Inf"), count);
        self.line("_sum", labels, None, seconds(sum_us));
        self.line("_count", labels, None, count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], bound: Option<&str>, value: impl Display) {
        self.begin();
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut separator = '{';
        for (name, value) in labels {
            self.text.push(separator);
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(self.text, value);
            self.text.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, " {value}");
    }

    fn begin(&mut self) {
        let Some((kind, help)) = self.head.take() else {
            return;
        };
        let (name, kind) = (self.name, kind.name());
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }
}

fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

fn seconds(microseconds: u64) -> f64 {
    Duration::from_micros(microseconds).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::{Kind, Text};

    #[test]
    fn a_family_is_written_as_the_format_has_it() {
        let mut text = Text::default();
        let mut family = text.family("a_total", Kind::Counter, "One\\two\nthree.");
        family.sample(&[], 1);
        family.sample(&[("x", "a\\b\"c\nd"), ("y", "")], 2.5);
        text.family("b", Kind::Gauge, "Nothing.");
        assert_eq!(
            text.into_string(),
            "# HELP a_total One\\\\two\\nthree.\n# TYPE a_total counter\na_total 1\n\
             a_total{x=\"a\\\\b\\\"c\\nd\",y=\"\"} 2.5\n"
        );
    }

    #[test]
    fn a_histogram_is_in_seconds() {
        let mut text = Text::default();
        let mut family = text.family("h_seconds", Kind::Histogram, "Time.");
        family.histogram(&[("d", "x")], [(1, 2), (1 << 23, 3)].into_iter(), 2_500_000, 4);
        assert_eq!(
            text.into_string(),
            "# HELP h_seconds Time.\n# TYPE h_seconds histogram\nh_seconds_bucket{d=\"x\",le=\"0.000001\"} 2\n\
             h_seconds_bucket{d=\"x\",le=\"8.388608\"} 3\nh_seconds_bucket{d=\"x\",le=\"+Inf\"} 4\n\
             h_seconds_sum{d=\"x\"} 2.5\nh_seconds_count{d=\"x\"} 4\n"
        );
    }
}
