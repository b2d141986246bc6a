//! Results of the clients of other projects: `results/CLIENT.json` lists the tests that must pass, those that fail and those that do
//! not run. `results/reasons.json` has the reason of each that does not pass.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

use serde::{Deserialize, Serialize};

/// Environment variable that rewrites the lists. A failed test keeps its reason; a new one gets [`UNREVIEWED`].
const UPDATE: &str = "UPDATE_DIFFERENCES";
/// Reason of a failed test without review.
const UNREVIEWED: &str = "unreviewed";
/// Files that pin the versions of the clients, as `NAME==VERSION`.
const PINS: [&str; 3] = ["requirements.txt", "without-dependencies.txt", "fctools.txt"];

/// Tests by the reason that they do not pass.
type Reasons = BTreeMap<String, Vec<String>>;

/// The tests of a client. The name of each starts with its group and a colon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Results {
    /// Tests that must pass.
    pub passed: Vec<String>,
    /// Tests that must fail.
    pub failed: Reasons,
    /// Tests that do not run.
    pub skipped: Reasons,
}

fn path(name: &str) -> PathBuf {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/results");
    Path::new(directory).join(format!("{name}.json"))
}

/// Returns the reasons by their names.
pub fn reasons() -> BTreeMap<String, String> {
    let text = fs::read_to_string(path("reasons")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Returns the version of `client`.
pub fn version(client: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let pins = PINS.map(|name| fs::read_to_string(directory.join(name)).unwrap());
    let line = pins.iter().flat_map(|pins| pins.lines()).find_map(|line| {
        let (name, version) = line.split_once("==")?;
        (name == client).then(|| version.split(' ').next().unwrap_or(version))
    });
    line.unwrap_or_else(|| panic!("{client} has no version in {PINS:?}"))
        .to_owned()
}

impl Results {
    /// Reads the list of `client`.
    pub fn read(client: &str) -> Self {
        match fs::read_to_string(path(client)) {
            Ok(text) => serde_json::from_str(&text).unwrap_or_else(|error| panic!("{client}.json: {error}")),
            Err(_) => Self::default(),
        }
    }

    /// Returns the tests of `group` that do not run, without the name of the group.
    pub fn skipped_in(&self, group: &str) -> Vec<String> {
        let names = self.skipped.values().flatten();
        names.filter_map(|name| in_group(name, group)).collect()
    }

    /// Returns the reason of the failure of `name`.
    fn reason(&self, name: &String) -> Option<&String> {
        let entry = self.failed.iter().find(|(_, names)| names.contains(name));
        entry.map(|(reason, _)| reason)
    }

    /// Replaces the results of `group`.
    fn replace(&mut self, group: &str, found: &BTreeMap<String, bool>) {
        let old = self.clone();
        let is_other = |name: &String| in_group(name, group).is_none();
        self.passed.retain(is_other);
        self.failed.values_mut().for_each(|names| names.retain(is_other));
        for (name, passed) in found {
            let name = format!("{group}: {name}");
            let names = if *passed {
                &mut self.passed
            } else {
                let reason = old.reason(&name).map_or(UNREVIEWED, String::as_str);
                self.failed.entry(reason.to_owned()).or_default()
            };
            names.push(name);
        }
        self.failed.retain(|_, names| !names.is_empty());
        self.passed.sort();
        self.failed.values_mut().for_each(|names| names.sort());
    }

    /// Returns the difference from `found`, the tests of `group` that ran and whether they passed.
    fn problems(&self, group: &str, found: &BTreeMap<String, bool>) -> Vec<String> {
        let mut problems = Vec::new();
        let mut listed = BTreeMap::new();
        let passed = self.passed.iter().map(|name| (name, true));
        let failed = self.failed.values().flatten().map(|name| (name, false));
        for (name, passed) in passed.chain(failed) {
            let Some(name) = in_group(name, group) else {
                continue;
            };
            match found.get(&name) {
                Some(result) if *result == passed => {}
                Some(true) => problems.push(format!("{name}: listed as failed, but passed")),
                Some(false) => problems.push(format!("{name}: failed")),
                None => problems.push(format!("{name}: listed, but did not run")),
            }
            assert!(
                listed.insert(name.clone(), passed).is_none(),
                "{name} is listed twice"
            );
        }
        let unlisted = found.keys().filter(|name| !listed.contains_key(*name));
        problems.extend(unlisted.map(|name| format!("{name}: not listed")));
        problems
    }
}

/// Returns the name of a test in `group`, without the group.
fn in_group(name: &str, group: &str) -> Option<String> {
    let name = name.strip_prefix(group)?.strip_prefix(": ")?;
    Some(name.to_owned())
}

/// Compares the tests `found` of `group`, true for those that passed, with the list of `client`. Rewrites the list if [`UPDATE`] is
/// set.
///
/// # Panics
/// Panics with `output` and each test whose result is not the listed one.
pub fn check(client: &str, group: &str, found: &BTreeMap<String, bool>, output: &str) {
    static FILE: Mutex<()> = Mutex::new(());
    let _guard = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut results = Results::read(client);
    if env::var_os(UPDATE).is_some() {
        results.replace(group, found);
        let text = serde_json::to_string_pretty(&results).unwrap();
        fs::write(path(client), text + "\n").unwrap();
    }
    let problems = results.problems(group, found);
    assert!(
        problems.is_empty(),
        "{client}: {} problems; mend mayfly, or run with {UPDATE}=1 and review tests/clients/results/{client}.json\n{}\n{output}",
        problems.len(),
        problems.join("\n"),
    );
}

#[test]
fn results_other_than_listed_are_reported() {
    let list = Results {
        passed: vec!["a: good".to_owned(), "a: gone".to_owned(), "b: other".to_owned()],
        failed: Reasons::from([(
            "reason".to_owned(),
            vec!["a: bad".to_owned(), "a: mended".to_owned()],
        )]),
        skipped: Reasons::from([(
            "reason".to_owned(),
            vec!["a: never".to_owned(), "b: never".to_owned()],
        )]),
    };
    assert_eq!(list.skipped_in("a"), ["never"]);
    let found = |results: &[(&str, bool)]| -> BTreeMap<String, bool> {
        results
            .iter()
            .map(|(name, passed)| ((*name).to_owned(), *passed))
            .collect()
    };
    let same = found(&[("good", true), ("gone", true), ("bad", false), ("mended", false)]);
    assert!(list.problems("a", &same).is_empty());
    let other = found(&[("good", false), ("bad", false), ("mended", true), ("new", true)]);
    let mut problems = list.problems("a", &other);
    problems.sort();
    assert_eq!(
        problems,
        [
            "gone: listed, but did not run",
            "good: failed",
            "mended: listed as failed, but passed",
            "new: not listed"
        ]
    );
}

#[test]
fn rewritten_results_keep_reasons_and_other_groups() {
    let mut list = Results {
        passed: vec!["a: gone".to_owned(), "b: other".to_owned()],
        failed: Reasons::from([("reason".to_owned(), vec!["a: bad".to_owned()])]),
        skipped: Reasons::new(),
    };
    let found = [
        ("bad".to_owned(), false),
        ("new".to_owned(), false),
        ("good".to_owned(), true),
    ];
    list.replace("a", &BTreeMap::from(found));
    assert_eq!(list.passed, ["a: good", "b: other"]);
    assert_eq!(list.failed["reason"], ["a: bad"]);
    assert_eq!(list.failed[UNREVIEWED], ["a: new"]);
}
