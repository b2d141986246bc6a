//! The text format of Prometheus, version 0.0.4.

use std::collections::HashSet;

/// Numbers in one text. A VM with all the devices that it can have has some two thousand.
const MOST_SAMPLES: usize = 5000;

/// Why a text is not in the format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line that is none of the format.
    #[error("line {number} is no metric: {text:?}")]
    Line {
        /// Number of the line, from 1.
        number: usize,
        /// Its beginning.
        text: String,
    },
    /// More than one VM has.
    #[error("there are more than {MOST_SAMPLES} numbers")]
    Many,
}

/// One number.
#[derive(Debug, PartialEq)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Names and values of its labels, in their order.
    pub labels: Vec<(String, String)>,
    /// The number.
    pub value: f64,
}

/// What a sample is of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// How many were not above a bound.
    Bucket,
    /// All together.
    Sum,
    /// How many there were.
    Count,
}

const PARTS: [(&str, Part); 3] = [
    ("_bucket", Part::Bucket),
    ("_sum", Part::Sum),
    ("_count", Part::Count),
];

/// A text that was read.
#[derive(Debug, Default)]
pub struct Exposition {
    samples: Vec<Sample>,
    histograms: HashSet<String>,
}

impl Exposition {
    /// Reads `text`.
    ///
    /// # Errors
    /// [`Error`]
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut exposition = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if let Some(comment) = line.strip_prefix('#') {
                let mut words = comment.split_whitespace();
                if let (Some("TYPE"), Some(name), Some("histogram")) =
                    (words.next(), words.next(), words.next())
                {
                    exposition.histograms.insert(name.to_owned());
                }
                continue;
            }
            if line.is_empty() {
                continue;
            }
            if exposition.samples.len() == MOST_SAMPLES {
                return Err(Error::Many);
            }
            exposition.samples.push(sample(line).ok_or_else(|| Error::Line {
                number: index + 1,
                text: line.chars().take(60).collect(),
            })?);
        }
        Ok(exposition)
    }

    /// The numbers in their order.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter()
    }

    /// Name of the histogram that `sample` is a part of, and which part.
    pub fn histogram_of<'a>(&self, sample: &'a Sample) -> Option<(&'a str, Part)> {
        PARTS.iter().find_map(|(suffix, part)| {
            let name = sample.name.strip_suffix(suffix)?;
            self.histograms.contains(name).then_some((name, *part))
        })
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = read_labels(inside, &mut labels)?;
    }
    // A time may follow the value.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then(|| Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// Reads labels up to the brace, and returns what comes after that.
fn read_labels<'a>(mut rest: &'a str, labels: &mut Vec<(String, String)>) -> Option<&'a str> {
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some(after);
        }
        let (name, quoted) = rest.split_once('=')?;
        let (value, after) = unquote(quoted.trim_start().strip_prefix('"')?)?;
        labels.push((name.trim().to_owned(), value));
        rest = after;
    }
}

/// A value up to its quote, and what comes after that.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Error, Exposition, MOST_SAMPLES, Part};

    #[test]
    fn samples_are_read() {
        let text = "# HELP a Some text {\n# TYPE a counter\na 1\n\nb{} 2.5 1700000000\n\
                    c{x=\"1\",y=\"a\\\\b\\\"c\\nd }\",} +Inf\n";
        let exposition = Exposition::parse(text).unwrap();
        let samples: Vec<_> = exposition.samples().collect();
        assert_eq!((samples[0].name.as_str(), samples[0].value), ("a", 1.0));
        assert_eq!((samples[1].labels.len(), samples[1].value), (0, 2.5));
        assert_eq!(samples[2].value, f64::INFINITY);
        assert_eq!(samples[2].labels[1], ("y".into(), "a\\b\"c\nd }".into()));
    }

    #[test]
    fn parts_of_a_histogram_are_told_by_its_type() {
        let text = "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\nother_count 1\n";
        let exposition = Exposition::parse(text).unwrap();
        let parts: Vec<_> = exposition
            .samples()
            .map(|sample| exposition.histogram_of(sample))
            .collect();
        let of = |part| Some(("h", part));
        assert_eq!(parts, [of(Part::Bucket), of(Part::Sum), of(Part::Count), None]);
    }

    #[test]
    fn what_is_not_in_the_format_is_named() {
        for line in [
            "a",
            "a{",
            "a{x} 1",
            "a{x=1} 1",
            "a{x=\"1} 1",
            "a{} x",
            "{} 1",
            "<html> <body>",
        ] {
            let error = Exposition::parse(&format!("ok 1\n{line}\n")).unwrap_err();
            let expected = Error::Line {
                number: 2,
                text: line.into(),
            };
            assert_eq!(error, expected);
        }
        let many = "a 1\n".repeat(MOST_SAMPLES + 1);
        assert_eq!(Exposition::parse(&many).unwrap_err(), Error::Many);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), inside in "[a-z{}\"\\\\=, 0-9\n]*") {
            let _ = (Exposition::parse(&text), Exposition::parse(&inside));
        }
    }
}
