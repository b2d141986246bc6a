//! The tables of docs/firecracker-compatibility.md that are made from test output.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{env, fs};

use crate::oracle::Difference;
use crate::oracle::list::{self, UPDATE};
use crate::results::{self, Results};

const PAGE: &str = "docs/firecracker-compatibility.md";
/// Lists of the differences.
const SCOPES: [&str; 6] = ["fields", "requests", "interfaces", "guest", "commands", "signals"];
/// Clients with a list of results.
const CLIENTS: [&str; 4] = ["fctools", "firecracker-python", "pyrecracker", "schemathesis"];
/// Maximum characters of an outcome in a cell.
const MAX_CELL: usize = 110;

/// Returns `text` as a code span in a table, truncated.
fn cell(text: &str) -> String {
    let line = text.replace(['\n', '`'], " ").replace('|', "\\|");
    match line.char_indices().nth(MAX_CELL) {
        Some((end, _)) => format!("`{}`...", line[..end].trim_end_matches('\\')),
        None => format!("`{line}`"),
    }
}

/// Returns the table of differences: a row for each reason, with its shortest example.
fn differences() -> String {
    let mut groups: BTreeMap<String, Vec<Difference>> = BTreeMap::new();
    for scope in SCOPES {
        for (difference, reason) in list::listed(scope) {
            groups.entry(reason).or_default().push(difference);
        }
    }
    let mut rows: Vec<(usize, String)> = Vec::new();
    let reasons = list::reasons();
    for (name, reason) in &reasons {
        let Some(group) = groups.get(name) else {
            panic!("reason {name} has no difference; remove it from reasons.json");
        };
        let length = |difference: &&Difference| {
            difference.request.len() + difference.firecracker.len() + difference.mayfly.len()
        };
        let example = group.iter().min_by_key(length).unwrap();
        let row = format!(
            "| {} | {} | {} | {} | {} | {} |",
            reason.text,
            group.len(),
            cell(&example.request),
            cell(&example.firecracker),
            cell(&example.mayfly),
            reason.source
        );
        rows.push((group.len(), row));
    }
    rows.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let total: usize = rows.iter().map(|(count, _)| count).sum();
    let rows: Vec<String> = rows.into_iter().map(|(_, row)| row).collect();
    format!(
        "{total} requests, command lines and signals of the comparison have another outcome:\n\n\
         | difference | requests | example | Firecracker 1.12.1 | mayfly | source |\n|---|---|---|---|---|---|\n{}",
        rows.join("\n")
    )
}

/// Returns the table of the results of other clients.
fn clients() -> String {
    let reasons = results::reasons();
    let mut used = BTreeSet::new();
    let mut rows = Vec::new();
    for client in CLIENTS {
        let results = Results::read(client);
        let failed: usize = results.failed.values().map(Vec::len).sum();
        let mut others = Vec::new();
        for (group, verb) in [(&results.failed, "failed"), (&results.skipped, "not run")] {
            for (name, tests) in group {
                let reason = reasons.get(name);
                let reason = reason.unwrap_or_else(|| panic!("{client}.json: reasons.json lacks {name}"));
                others.push(format!("{} {verb}: {reason}", tests.len()));
                used.insert(name.clone());
            }
        }
        rows.push(format!(
            "| {client} | {} | {} | {} | {} |",
            results::version(client),
            results.passed.len() + failed,
            results.passed.len(),
            others.join("; ")
        ));
    }
    let unused: Vec<&String> = reasons.keys().filter(|name| !used.contains(*name)).collect();
    assert!(
        unused.is_empty(),
        "no test has the reasons {unused:?}; remove them from reasons.json"
    );
    format!(
        "| client | version | tests run | passed | others |\n|---|---|---|---|---|\n{}",
        rows.join("\n")
    )
}

/// Compares the text between two markers of the page with `generated`, or replaces it if [`UPDATE`] is set.
fn check(name: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (start, end) = (format!("<!-- {name} -->\n"), format!("\n<!-- end of {name} -->"));
    let (before, rest) = page.split_once(&start).unwrap();
    let (present, after) = rest.split_once(&end).unwrap();
    if env::var_os(UPDATE).is_some() {
        fs::write(&path, format!("{before}{start}{generated}{end}{after}")).unwrap();
    } else {
        assert!(
            present == generated,
            "the table {name} of {PAGE} is stale; run `{UPDATE}=1 cargo test --test clients document`"
        );
    }
}

#[test]
fn table_of_differences_is_current() {
    check("differences", &differences());
}

#[test]
fn table_of_clients_is_current() {
    check("clients", &clients());
}
