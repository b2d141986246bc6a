//! Amounts as people write and read them.

const UNITS: [(&str, f64); 4] = [
    ("TiB", 1_099_511_627_776.0),
    ("GiB", 1_073_741_824.0),
    ("MiB", 1_048_576.0),
    ("KiB", 1024.0),
];

/// A number of bytes: `1.5 KiB`, `128 MiB`.
pub(super) fn bytes(count: f64) -> String {
    match UNITS.iter().find(|(_, unit)| count.abs() >= *unit) {
        Some((name, unit)) => format!("{} {name}", short(count / unit)),
        None => format!("{} B", number(count)),
    }
}

/// A time, given in seconds: `12 us`, `1.5 ms`.
pub(super) fn seconds(time: f64) -> String {
    let size = time.abs();
    if size >= 1.0 || size.is_nan() {
        format!("{} s", short(time))
    } else if size >= 1e-3 {
        format!("{} ms", short(time * 1e3))
    } else if size > 0.0 {
        format!("{} us", short(time * 1e6))
    } else {
        "0".to_owned()
    }
}

/// A bare number.
pub(super) fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        format!("{value:.0}")
    } else {
        format!("{value}")
    }
}

/// Three digits that count, which is as exact as anybody reads.
fn short(value: f64) -> String {
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

/// Reads a number with K, M, G or T behind it, each 1024 times the one before, or with nothing.
pub(super) fn amount(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return None,
    };
    count(digits)?.checked_mul(1 << unit)
}

/// Reads a number that has digits and nothing else.
pub(super) fn count(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{amount, bytes, number, seconds};

    #[test]
    fn three_digits_count() {
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

    #[test]
    fn amounts_have_units() {
        for (text, count) in [
            ("0", 0),
            ("12", 12),
            ("1k", 1024),
            ("10M", 10 << 20),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(amount(text), Some(count), "{text}");
        }
        for text in ["", "M", "-1", "+1", "1.5M", "1 M", "1Q", "99999999999T", "1é"] {
            assert_eq!(amount(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_or_number_panics(text in any::<String>(), value in any::<f64>()) {
            let _ = (amount(&text), bytes(value), seconds(value), number(value));
        }
    }
}
