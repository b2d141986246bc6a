//! The rules of .cargo/deny.toml for dependencies: licenses, duplicate versions, sources. The test needs no tool beside cargo.

#![allow(clippy::unwrap_used, reason = "a test reports failure by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::Value;

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// A crate that mayfly or its tests link.
struct Package {
    name: String,
    version: String,
    license: String,
    /// Registry or repository; none for the crates of this workspace.
    source: Option<String>,
}

/// Returns the packages for `target`.
fn packages(target: &str) -> Vec<Package> {
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(["--filter-platform", target]);
    let output = scratch::run(&mut command);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| Package {
            name: text(&package["name"]),
            version: text(&package["version"]),
            license: text(&package["license"]),
            source: package["source"].as_str().map(str::to_owned),
        })
        .collect()
}

/// Returns the texts in the array `key` of .cargo/deny.toml.
fn rule(key: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/.cargo/deny.toml");
    let rules = fs::read_to_string(path).unwrap();
    let (_, array) = rules.split_once(&format!("\n{key} = [")).unwrap();
    let (array, _) = array.split_once("]\n").unwrap();
    array.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns true if `allowed` licenses satisfy `expression`, in the SPDX syntax or with slashes for OR.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let result = evaluate(&mut rest, allowed);
    assert!(rest.is_empty(), "{expression}");
    result
}

/// Evaluates an expression up to its end or closing parenthesis. AND binds more tightly than OR.
fn evaluate(words: &mut &[&str], allowed: &[String]) -> bool {
    let (mut any, mut all) = (false, true);
    loop {
        let (word, rest) = words.split_first().unwrap();
        *words = rest;
        all &= match *word {
            "(" => {
                let inner = evaluate(words, allowed);
                *words = words.strip_prefix(&[")"]).unwrap();
                inner
            }
            license => allowed.iter().any(|allowed| allowed == license),
        };
        match words.first() {
            Some(&"AND") => *words = &words[1..],
            Some(&"OR") => {
                *words = &words[1..];
                any |= std::mem::replace(&mut all, true);
            }
            _ => return any | all,
        }
    }
}

#[test]
fn licenses_are_permissive() {
    let allowed = rule("allow");
    for target in TARGETS {
        for Package { name, license, .. } in packages(target) {
            assert!(
                is_allowed(&license, &allowed),
                "{name} has the license {license:?}"
            );
        }
    }
}

#[test]
fn crates_come_from_one_registry() {
    for target in TARGETS {
        let packages = packages(target);
        let sources = packages.iter().filter_map(|package| package.source.as_deref());
        let mut sources: Vec<&str> = sources.collect();
        sources.dedup();
        assert_eq!(sources, ["registry+https://github.com/rust-lang/crates.io-index"]);
    }
}

#[test]
fn crates_have_one_version() {
    let skipped = rule("skip");
    let mut unused: Vec<&String> = skipped.iter().filter(|text| text.contains('@')).collect();
    for target in TARGETS {
        let mut versions = BTreeMap::<String, Vec<String>>::new();
        for package in packages(target) {
            versions.entry(package.name).or_default().push(package.version);
        }
        for (name, versions) in versions.iter_mut().filter(|(_, versions)| versions.len() > 1) {
            versions.retain(|version| {
                let id = format!("{name}@{version}");
                unused.retain(|skipped| **skipped != id);
                !skipped.contains(&id)
            });
            assert!(versions.len() < 2, "{name} has the versions {versions:?}");
        }
    }
    assert!(unused.is_empty(), "these are no duplicates: {unused:?}");
}

#[test]
fn license_expressions_are_evaluated() {
    let allowed = ["MIT".to_owned(), "BSD-3-Clause".to_owned()];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-2.0", false),
        ("GPL-2.0 OR MIT", true),
        ("Unlicense/MIT", true),
        ("MIT AND GPL-2.0", false),
        ("MIT AND BSD-3-Clause", true),
        ("GPL-2.0 AND MIT OR BSD-3-Clause", true),
        ("(GPL-2.0 OR MIT) AND BSD-3-Clause", true),
        ("MIT AND (GPL-2.0 OR GPL-3.0)", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}
