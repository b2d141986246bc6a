//! Limits of drives and interfaces, as they are written and as they are shown.

use serde_json::{Map, Value, json};

use super::table::{NOTHING, cell};
use super::units;

/// What the tokens of a bucket are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenUnit {
    Bytes,
    Operations,
}

/// Reads `AMOUNT/MILLISECONDS[/BURST]` or `off` into what the API takes for a bucket.
pub(super) fn bucket(text: &str, tokens: TokenUnit) -> Option<Value> {
    // Zeros are no limit.
    if text == "off" {
        return Some(json!({"size": 0, "refill_time": 0}));
    }
    let amount = match tokens {
        TokenUnit::Bytes => units::amount,
        TokenUnit::Operations => units::count,
    };
    let mut parts = text.split('/');
    let size = amount(parts.next()?)?;
    let time = parts.next()?;
    let refill_time = units::count(time.strip_suffix("ms").unwrap_or(time))?;
    let mut bucket = json!({"size": size, "refill_time": refill_time});
    if let Some(burst) = parts.next() {
        bucket["one_time_burst"] = amount(burst)?.into();
    }
    parts.next().is_none().then_some(bucket)
}

/// A limiter of the API: its two buckets, where there are any.
pub(super) fn limiter(bandwidth: Option<Value>, operations: Option<Value>) -> Option<Value> {
    let mut limiter = Map::new();
    limiter.extend(bandwidth.map(|bucket| ("bandwidth".to_owned(), bucket)));
    limiter.extend(operations.map(|bucket| ("ops".to_owned(), bucket)));
    (!limiter.is_empty()).then_some(Value::Object(limiter))
}

/// A limiter for people: `10 MiB/100 ms + 1 MiB, 50/1000 ms`.
pub(super) fn show(limiter: &Value) -> String {
    let buckets = [("bandwidth", TokenUnit::Bytes), ("ops", TokenUnit::Operations)];
    let shown: Vec<_> = buckets
        .iter()
        .filter_map(|(key, tokens)| show_bucket(&limiter[key], *tokens))
        .collect();
    if shown.is_empty() {
        return NOTHING.to_owned();
    }
    shown.join(", ")
}

fn show_bucket(bucket: &Value, tokens: TokenUnit) -> Option<String> {
    let amount = |key: &str| {
        let count = bucket[key].as_f64().filter(|count| *count != 0.0)?;
        Some(match tokens {
            TokenUnit::Bytes => units::bytes(count),
            TokenUnit::Operations => format!("{} ops", units::number(count)),
        })
    };
    let size = amount("size")?;
    let time = bucket["refill_time"].as_f64().filter(|time| *time != 0.0)?;
    let mut text = format!("{size} in {}", units::seconds(time / 1e3));
    if let Some(burst) = amount("one_time_burst") {
        text.push_str(&format!(" after {burst}"));
    }
    Some(text)
}

/// Memory that the API gives in MiB.
pub(super) fn mebibytes(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| cell(value), |count| units::bytes(count * 1_048_576.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{TokenUnit, bucket, limiter, show};

    #[test]
    fn buckets_are_read() {
        let bytes = |text| bucket(text, TokenUnit::Bytes);
        let operations = |text| bucket(text, TokenUnit::Operations);
        assert_eq!(
            bytes("10M/100"),
            Some(json!({"size": 10 << 20, "refill_time": 100}))
        );
        assert_eq!(
            bytes("1K/5ms/2K"),
            Some(json!({"size": 1024, "refill_time": 5, "one_time_burst": 2048}))
        );
        assert_eq!(
            operations("50/1000"),
            Some(json!({"size": 50, "refill_time": 1000}))
        );
        assert_eq!(bytes("off"), Some(json!({"size": 0, "refill_time": 0})));
        for text in ["", "10M", "10M/", "/1", "1/2/3/4", "1/2/", "x/1", "1/1K", "1/1s"] {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(operations("1K/1000"), None, "operations are counted one by one");
    }

    #[test]
    fn a_limiter_has_what_was_given() {
        assert_eq!(limiter(None, None), None);
        assert_eq!(limiter(None, Some(json!(1))), Some(json!({"ops": 1})));
    }

    #[test]
    fn limiters_are_shown() {
        let limiter = json!({
            "bandwidth": {"size": 10 << 20, "refill_time": 100, "one_time_burst": 1024},
            "ops": {"size": 50, "refill_time": 1000},
        });
        assert_eq!(show(&limiter), "10 MiB in 100 ms after 1 KiB, 50 ops in 1 s");
        for none in [
            json!(null),
            json!({}),
            json!({"ops": null}),
            json!({"ops": {"size": 0, "refill_time": 0}}),
            json!("x"),
        ] {
            assert_eq!(show(&none), "-");
        }
    }
}
