//! Quantiles of what was counted in buckets.

use std::collections::HashMap;

use super::exposition::{Part, Sample};
use crate::ctl::table::NOTHING;
use crate::ctl::units;

/// The label that has the bound of a bucket.
const BOUND: &str = "le";

/// One histogram.
pub struct Histogram<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels, without that of the bound.
    pub labels: &'a [(String, String)],
    /// How many values were counted.
    pub count: f64,
    /// Bounds of the buckets, and how many values were not above each.
    buckets: Vec<(f64, f64)>,
}

impl Histogram<'_> {
    /// The value below which `share` of the values are, as far as the buckets tell: they are taken to be spread evenly
    /// over the bucket that it is in, as Prometheus takes them.
    pub fn quantile(&self, share: f64) -> String {
        let shown = |value| {
            if self.name.ends_with("_bytes") {
                units::bytes(value)
            } else {
                units::seconds(value)
            }
        };
        let rank = share * self.count;
        let (mut below, mut reached) = (0.0, 0.0);
        if rank.is_nan() || rank <= 0.0 {
            return NOTHING.to_owned();
        }
        for (bound, sum) in &self.buckets {
            if *sum >= rank && bound.is_finite() {
                let part = (rank - reached) / (sum - reached);
                return shown(below + (bound - below) * part);
            }
            if bound.is_finite() {
                (below, reached) = (*bound, *sum);
            }
        }
        format!("> {}", shown(below))
    }
}

/// Name, and labels without that of the bound.
type Key<'a> = (&'a str, Vec<(String, String)>);

/// The histograms of a text.
#[derive(Default)]
pub struct Histograms<'a> {
    list: Vec<(Key<'a>, Buckets)>,
    indices: HashMap<Key<'a>, usize>,
}

#[derive(Default)]
struct Buckets {
    count: f64,
    buckets: Vec<(f64, f64)>,
}

impl<'a> Histograms<'a> {
    /// Adds `sample`, which is a `part` of the histogram `name`.
    pub fn add(&mut self, name: &'a str, part: Part, sample: &Sample) {
        let labels: Vec<_> = sample
            .labels
            .iter()
            .filter(|(label, _)| label != BOUND)
            .cloned()
            .collect();
        let next = self.list.len();
        let key = (name, labels);
        let index = *self.indices.entry(key.clone()).or_insert(next);
        if index == next {
            self.list.push((key, Buckets::default()));
        }
        let buckets = &mut self.list[index].1;
        let bound = sample.labels.iter().find(|(label, _)| label == BOUND);
        let bound = bound.and_then(|(_, bound)| bound.parse().ok());
        match (part, bound) {
            (Part::Bucket, Some(bound)) => buckets.buckets.push((bound, sample.value)),
            (Part::Count, _) => buckets.count = sample.value,
            _ => {}
        }
    }

    /// All of them, in the order in which they came.
    pub fn finish(&mut self) -> impl Iterator<Item = Histogram<'_>> {
        self.list.iter_mut().map(|((name, labels), found)| {
            found.buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            Histogram {
                name,
                labels,
                count: found.count,
                buckets: std::mem::take(&mut found.buckets),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    fn histogram(buckets: &[(f64, f64)], count: f64) -> Histogram<'static> {
        Histogram {
            name: "h_seconds",
            labels: &[],
            count,
            buckets: buckets.to_vec(),
        }
    }

    #[test]
    fn a_quantile_lies_in_its_bucket() {
        let even = histogram(
            &[(1.0, 0.0), (2.0, 50.0), (4.0, 100.0), (f64::INFINITY, 100.0)],
            100.0,
        );
        for (share, text) in [(0.25, "1.5 s"), (0.5, "2 s"), (0.75, "3 s"), (1.0, "4 s")] {
            assert_eq!(even.quantile(share), text, "{share}");
        }
    }

    #[test]
    fn what_is_beyond_the_last_bound_is_said_so() {
        let slow = histogram(&[(1.0, 1.0), (f64::INFINITY, 3.0)], 3.0);
        assert_eq!(slow.quantile(0.99), "> 1 s");
    }

    #[test]
    fn without_values_there_is_none() {
        for count in [0.0, -1.0, f64::NAN] {
            assert_eq!(histogram(&[(1.0, 0.0)], count).quantile(0.5), "-");
        }
        assert_eq!(histogram(&[], 2.0).quantile(0.5), "> 0");
    }
}
