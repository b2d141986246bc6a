//! The documentation without KVM: commands, options, goals, links and paths in it exist.

#![allow(clippy::unwrap_used, reason = "a test reports failure by panicking")]

#[path = "docs/check.rs"]
mod check;
#[path = "docs/pages.rs"]
mod pages;

use std::fs;
use std::path::PathBuf;

use check::{Help, check_command, read, root};
use pages::{Block, PAGES, Treatment, blocks, commands};

/// Directories that hold no text of this repository.
const GENERATED: [&str; 6] = ["target", "dist", ".cache", ".git", "corpus", "artifacts"];

/// Returns all files of this repository whose name ends with `suffix`, relative to the root.
fn files(suffix: &str) -> Vec<String> {
    let mut directories = vec![root().to_owned()];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() && !GENERATED.iter().any(|generated| name.starts_with(generated)) {
                directories.push(path);
            } else if name.ends_with(suffix) {
                files.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// Returns all Markdown files.
fn markdown() -> Vec<String> {
    files(".md")
}

/// Returns the code spans outside blocks, with the numbers of their lines.
fn spans(page: &str) -> Vec<(usize, String)> {
    let mut spans = Vec::new();
    let mut is_block = false;
    for (number, line) in (1..).zip(page.lines()) {
        if line.starts_with("```") {
            is_block = !is_block;
        } else if !is_block {
            let parts = line.split('`').skip(1).step_by(2);
            spans.extend(parts.map(|span| (number, span.to_owned())));
        }
    }
    spans
}

#[test]
fn every_page_is_checked() {
    for file in markdown().iter().filter(|file| file.starts_with("docs/")) {
        assert!(
            PAGES.iter().any(|(name, _)| name == file),
            "{file} is missing in PAGES"
        );
    }
}

#[test]
fn commands_in_blocks_exist() {
    let mut help = Help::default();
    let mut count = 0;
    for (name, page) in PAGES {
        for Block { line, code, .. } in blocks(name, page) {
            for words in commands(&code) {
                check_command(&mut help, &words)
                    .unwrap_or_else(|error| panic!("{name}:{line}: {words:?}: {error}"));
                count += 1;
            }
        }
    }
    assert!(count > 30, "only {count} commands were found");
}

#[test]
fn commands_in_code_spans_exist() {
    let mut help = Help::default();
    for (name, page) in PAGES
        .iter()
        .chain(&[("CHANGELOG.md", read("CHANGELOG.md").as_str())])
    {
        for (line, span) in spans(page) {
            let is_command = ["mayfly -", "mayfly run", "mayfly ctl ", "make ", "cargo "]
                .iter()
                .chain(&[
                    "mayfly snapshot",
                    "mayfly restore",
                    "mayfly inspect",
                    "mayfly help",
                ])
                .any(|start| span.starts_with(start));
            if !is_command {
                continue;
            }
            for words in commands(&span.replace(['[', ']', '|'], " ")) {
                check_command(&mut help, &words)
                    .unwrap_or_else(|error| panic!("{name}:{line}: {words:?}: {error}"));
            }
        }
    }
}

#[test]
fn recipes_have_a_date_and_a_version() {
    for (name, page) in PAGES {
        for block in blocks(name, page) {
            let Treatment::Recipe(version) = &block.treatment else {
                continue;
            };
            let (date, program) = version.split_once(", ").unwrap_or_default();
            let digits = date.bytes().filter(u8::is_ascii_digit).count();
            assert!(
                date.len() == 10 && digits == 8 && program.contains(|c: char| c.is_ascii_digit()),
                "{name}:{}: {version:?} is not DATE, PROGRAM VERSION",
                block.line
            );
        }
    }
}

#[test]
fn readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 150, "README.md has {lines} lines");
}

#[test]
fn tables_have_no_open_cells() {
    for page in markdown() {
        assert!(
            !read(&page).contains("| MEASURE"),
            "{page} has a cell without a measured value"
        );
    }
}

/// Returns the anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn anchors(page: &str) -> Vec<String> {
    let mut is_block = false;
    let mut anchors = Vec::new();
    for line in page.lines() {
        if line.starts_with("```") {
            is_block = !is_block;
        } else if !is_block && line.starts_with('#') {
            anchors.push(anchor(line.trim_start_matches('#').trim()));
        }
    }
    anchors
}

#[test]
fn links_resolve() {
    for file in markdown() {
        let page = read(&file);
        let directory = root().join(&file).parent().unwrap().to_owned();
        for link in page.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = if path.is_empty() {
                root().join(&file)
            } else {
                directory.join(path)
            };
            assert!(linked.exists(), "{file}: {target} does not exist");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&linked).unwrap();
                assert!(
                    anchors(&text).iter().any(|known| known == anchor),
                    "{file}: {target}: no such heading"
                );
            }
        }
    }
}

#[test]
fn paths_in_code_spans_exist() {
    let top = [
        ".ci",
        "api",
        "benches",
        "devices",
        "docs",
        "jailer",
        "resources",
        "snapshot",
        "src",
        "tests",
        "vmm",
    ];
    let mut missing = Vec::new();
    for (name, page) in PAGES {
        for (line, span) in spans(page) {
            let is_path = span
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
            let (first, _) = span.split_once('/').unwrap_or_default();
            if is_path && top.contains(&first) && !root().join(&span).exists() {
                missing.push(format!("{name}:{line}: {span}"));
            }
        }
    }
    assert!(missing.is_empty(), "these paths do not exist: {missing:#?}");
}

#[test]
fn tests_of_security_promises_exist() {
    let sources: String = files(".rs").iter().map(|file| read(file)).collect();
    let page = read("docs/security.md");
    let mut missing = Vec::new();
    let mut has_tests = false;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let tests = row.split('|').nth(2).unwrap();
        // The first row of each table names its columns.
        if row.starts_with("| attack") {
            has_tests = true;
            assert_eq!(tests, " tests ", "{row}");
        } else if page.contains(&format!("{row}\n|---")) {
            has_tests = false;
        }
        for (_, test) in spans(tests) {
            if has_tests && !test.contains(' ') && !sources.contains(&format!("fn {test}(")) {
                missing.push(test);
            }
        }
    }
    assert!(missing.is_empty(), "these tests do not exist: {missing:#?}");
}

#[test]
fn shell_code_splits_into_commands() {
    let code = "a 'b c' \\\n  d | e \"f;g\" # h\n# i\nwhile j; do k >l & done\n";
    let split = commands(code);
    let split: Vec<Vec<&str>> = split
        .iter()
        .map(|words| words.iter().map(String::as_str).collect())
        .collect();
    assert_eq!(
        split,
        [
            vec!["a", "b c", "d"],
            vec!["e", "f;g"],
            vec!["while", "j"],
            vec!["do", "k", ">l"],
            vec!["done"]
        ]
    );
}

#[test]
fn unknown_commands_are_found() {
    let mut help = Help::default();
    for (code, known) in [
        ("mayfly run k --memory 64M -- --no-such", true),
        ("mayfly run k --no-such", false),
        ("mayfly run k --disk d,cache=writeback,ro", true),
        ("mayfly run k --disk d,no-such=1", false),
        ("mayfly no-such", false),
        ("sudo /usr/bin/mayfly --api-sock s --no-api", true),
        ("X=1 firecracker --no-such", false),
        ("mayfly ctl --api-sock s status", true),
        ("mayfly ctl no-such", false),
        ("mayfly ctl request PUT /drives/a '{}'", true),
        ("curl http://localhost/no-such", false),
        ("make test", true),
        ("make N=10 no", false),
        ("cargo test --test no-such", false),
    ] {
        let found = commands(code);
        let result = check_command(&mut help, &found[0]);
        assert_eq!(result.is_ok(), known, "{code}: {result:?}");
    }
}
