//! The reviewed list of differences: `differences/reasons.json`, and a file for each scope with the differences of each reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::{Map, Value, json};

use super::Difference;

/// Environment variable that rewrites the list. A difference keeps its reason; a new one gets [`UNREVIEWED`].
pub const UPDATE: &str = "UPDATE_DIFFERENCES";
/// Reason of a difference without review.
const UNREVIEWED: &str = "unreviewed";

fn path(name: &str) -> PathBuf {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/oracle/differences");
    Path::new(directory).join(format!("{name}.json"))
}

fn read(name: &str) -> Value {
    let text = fs::read_to_string(path(name)).unwrap_or_else(|_| "{}".to_owned());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}.json: {error}"))
}

/// Why the VMMs differ, and the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Reason.
    pub text: String,
    /// Document that states Firecracker's side, or the page that states mayfly's.
    pub source: String,
}

/// Returns the reasons by their names.
pub fn reasons() -> BTreeMap<String, Reason> {
    let Value::Object(reasons) = read("reasons") else {
        panic!("reasons.json is no object");
    };
    let field = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let reason = |(name, value): (String, Value)| {
        let (text, source) = (field(&value, "text"), field(&value, "source"));
        assert!(
            !text.is_empty() && !source.is_empty(),
            "reason {name} has no text or no source"
        );
        (name, Reason { text, source })
    };
    reasons.into_iter().map(reason).collect()
}

/// Returns the differences of `scope` with their reasons, in their order.
pub fn listed(scope: &str) -> Vec<(Difference, String)> {
    let mut listed = Vec::new();
    let Value::Object(groups) = read(scope) else {
        panic!("{scope}.json is no object");
    };
    for (reason, group) in groups {
        for (request, outcomes) in group.as_object().unwrap() {
            let outcome = |name: &str| outcomes[name].as_str().unwrap().to_owned();
            let difference = Difference {
                request: request.clone(),
                firecracker: outcome("firecracker"),
                mayfly: outcome("mayfly"),
            };
            listed.push((difference, reason.clone()));
        }
    }
    listed
}

/// Compares the differences `found` in `scope` with the list, or rewrites it if [`UPDATE`] is set.
///
/// # Panics
/// Panics with each difference that is not listed, or is listed and was not found.
pub fn check(scope: &str, found: &[Difference]) {
    if env::var_os(UPDATE).is_some() {
        write(scope, found);
    }
    let listed = listed(scope);
    let mut problems = Vec::new();
    for difference in found {
        if !listed.iter().any(|(other, _)| other == difference) {
            problems.push(format!(
                "not listed: {}\n  Firecracker: {}\n  mayfly:      {}",
                difference.request, difference.firecracker, difference.mayfly
            ));
        }
    }
    let reasons = reasons();
    for (difference, reason) in &listed {
        if !found.contains(difference) {
            problems.push(format!("listed, but gone: {}", difference.request));
        }
        if !reasons.contains_key(reason) {
            problems.push(format!("no reason: {}", difference.request));
        }
    }
    assert!(
        problems.is_empty(),
        "{} problems; mend mayfly, or run with {UPDATE}=1 and review tests/clients/oracle/differences/{scope}.json\n{}",
        problems.len(),
        problems.join("\n")
    );
}

fn write(scope: &str, found: &[Difference]) {
    let old = listed(scope);
    let mut groups = Map::new();
    for difference in found {
        let known = old.iter().find(|(other, _)| other.request == difference.request);
        let reason = known.map_or(UNREVIEWED, |(_, reason)| reason);
        let group = groups.entry(reason).or_insert_with(|| json!({}));
        group[&difference.request] =
            json!({"firecracker": difference.firecracker, "mayfly": difference.mayfly});
    }
    let text = serde_json::to_string_pretty(&Value::Object(groups)).unwrap();
    fs::write(path(scope), text + "\n").unwrap();
}
