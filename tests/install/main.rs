//! `make install` and `make deb`: files, man pages, completions in real shells, units, and the package in a clean Debian system.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod completions;
mod package;

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scratch::Directory;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the directory of the generated pages, if `make build` has run. Otherwise reports that the test is skipped.
#[track_caller]
fn pages() -> Option<PathBuf> {
    if env::var_os("MAYFLY").is_none() {
        scratch::skip(
            "the release programs and their pages",
            "run `make unit`, which builds them and names the program in MAYFLY",
        );
        return None;
    }
    Some(root().join("dist/share"))
}

/// Returns true if the program `name` exists. Otherwise reports that the test is skipped.
#[track_caller]
fn has_program(name: &str, package: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|directory| directory.join(name).is_file());
    if !found {
        scratch::skip(
            &format!("the program {name}"),
            &format!("install the package {package}"),
        );
    }
    found
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

/// Runs `command`, which must succeed, and returns its output.
#[track_caller]
fn expect_success(command: &mut Command) -> String {
    let output = scratch::run(command);
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    text(&output)
}

/// Runs a goal of make without the settings of an outer make.
fn make(arguments: &[&str]) -> Command {
    let mut command = Command::new("make");
    command
        .args(["--silent", "--directory"])
        .arg(root())
        .args(arguments);
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PREFIX", "DESTDIR", "ZSHDIR"] {
        command.env_remove(name);
    }
    command
}

/// Returns all files below `directory`, relative to it.
fn files(directory: &Path) -> Vec<String> {
    let mut directories = vec![directory.to_owned()];
    let mut files = Vec::new();
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

#[test]
fn uninstall_removes_all_that_install_places() {
    let Some(_) = pages() else { return };
    let stage = Directory::new();
    let destination = format!("DESTDIR={}", stage.root().display());
    expect_success(&mut make(&["install", "PREFIX=/opt/mayfly", &destination]));
    let prefix = stage.path("opt/mayfly");
    let installed = files(&prefix);
    for file in [
        "bin/mayfly",
        "bin/mayfly-jailer",
        "bin/mayfly-standby",
        "bin/mayfly-tools",
        "lib/systemd/system/mayfly-standby.service",
        "lib/systemd/system/mayfly-standby.socket",
        "lib/systemd/system/mayfly@.service",
        "share/bash-completion/completions/mayfly",
        "share/doc/mayfly/README.md",
        "share/doc/mayfly/docs/install.md",
        "share/fish/vendor_completions.d/mayfly.fish",
        "share/man/man1/mayfly-ctl.1",
        "share/zsh/site-functions/_mayfly",
    ] {
        assert!(
            installed.iter().any(|known| known == file),
            "{file}: {installed:?}"
        );
        let mode = fs::metadata(prefix.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            mode,
            if file.starts_with("bin/") { 0o755 } else { 0o644 },
            "{file}"
        );
    }
    let unit = fs::read_to_string(prefix.join("lib/systemd/system/mayfly@.service")).unwrap();
    assert!(
        unit.contains("\nExecStart=/opt/mayfly/bin/mayfly --id "),
        "{unit}"
    );
    // The installed programs find each other.
    let mut doctor = Command::new(prefix.join("bin/mayfly"));
    doctor.args(["doctor", "--help"]).env("PATH", "/nonexistent");
    assert!(expect_success(&mut doctor).starts_with("mayfly doctor - "));

    fs::write(prefix.join("share/doc/mayfly/docs/own"), "").unwrap();
    // An architecture without a build.
    let mut uninstall = script("uninstall", "none", "/opt/mayfly");
    expect_success(uninstall.env("DESTDIR", stage.root()));
    expect_success(&mut make(&["uninstall", "PREFIX=/opt/mayfly", &destination]));
    assert_eq!(files(&prefix), ["share/doc/mayfly/docs/own"]);
}

/// Returns the script of the goals, which runs without the rest of make.
fn script(action: &str, arch: &str, prefix: &str) -> Command {
    let mut command = Command::new(root().join("resources/install.sh"));
    command
        .args([action, arch])
        .env("PREFIX", prefix)
        .env_remove("ZSHDIR");
    command
}

#[test]
fn installed_directories_are_open_to_all_users() {
    let Some(_) = pages() else { return };
    let stage = Directory::new();
    // The mask of some roots.
    let mut command = Command::new("bash");
    command.args(["-c", "umask 077 && exec \"$0\" install \"$1\""]);
    command
        .arg(root().join("resources/install.sh"))
        .arg(env::consts::ARCH)
        .envs([("PREFIX", "/usr")])
        .env("DESTDIR", stage.root())
        .env_remove("ZSHDIR");
    expect_success(&mut command);
    for directory in [
        "usr",
        "usr/bin",
        "usr/share/man/man1",
        "usr/share/doc/mayfly/docs",
    ] {
        let mode = fs::metadata(stage.path(directory)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o755, "{directory}");
    }
}

#[test]
fn install_without_build_names_the_goal() {
    let run = |arch: &str, prefix: &str| {
        let stage = Directory::new();
        let output = scratch::run(script("install", arch, prefix).env("DESTDIR", stage.root()));
        assert!(!output.status.success() && files(stage.root()).is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(
        run("none", "/usr"),
        "install: cannot find dist/none/mayfly; run: make build ARCH=none\n"
    );
    assert_eq!(
        run("none", "usr"),
        "install: PREFIX is \"usr\"; name an absolute path\n"
    );
    for prefix in [
        "/opt/a&b",
        "/opt/a b",
        "/opt/50%",
        "/opt/a|b",
        "/opt/$a",
        "/opt/a\\b",
    ] {
        assert_eq!(
            run("none", prefix),
            format!(
                "install: PREFIX is \"{prefix}\", which units of systemd cannot name; use a path without spaces, quotes and \\ $ % & |\n"
            )
        );
    }
}

#[test]
fn man_pages_have_no_warnings() {
    let Some(pages) = pages() else { return };
    if !has_program("man", "man-db") || !has_program("mandoc", "mandoc") {
        return;
    }
    let directory = pages.join("man/man1");
    let names = files(&directory);
    for program in [
        "mayfly.1",
        "mayfly-ctl.1",
        "mayfly-jailer.1",
        "mayfly-standby.1",
        "mayfly-tools.1",
    ] {
        assert!(names.iter().any(|name| name == program), "{program}: {names:?}");
    }
    for name in names {
        let page = directory.join(&name);
        let mut man = Command::new("man");
        man.args(["--warnings", "--encoding=UTF-8", "--local-file"])
            .arg(&page)
            .envs([("MANWIDTH", "100"), ("MANPAGER", "cat"), ("LC_ALL", "C.UTF-8")]);
        let output = scratch::run(&mut man);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{name}: {}",
            text(&output)
        );
        // The terminal marks bold letters by overstriking.
        assert!(
            text(&output).contains("SYNOPSIS") || text(&output).contains('\u{8}'),
            "{name}"
        );
        let lint = expect_success(
            Command::new("mandoc")
                .args(["-T", "lint", "-W", "warning"])
                .arg(&page),
        );
        assert!(lint.is_empty(), "{lint}");
    }
}

#[test]
fn units_are_accepted_by_systemd() {
    let Some(_) = pages() else { return };
    if !has_program("systemd-analyze", "systemd") {
        return;
    }
    let stage = Directory::new();
    // The prefix is a path of this machine: systemd checks that the programs of the units exist.
    let prefix = format!("PREFIX={}", stage.path("prefix").display());
    expect_success(&mut make(&["install", &prefix]));
    let units = stage.path("prefix/lib/systemd/system");
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for unit in [
        "mayfly-standby.service",
        "mayfly-standby.socket",
        "mayfly@.service",
    ] {
        verify.arg(units.join(unit));
    }
    let printed = expect_success(&mut verify);
    assert!(!printed.contains("mayfly"), "{printed}");
    // A unit whose condition fails counts as started.
    let unit = fs::read_to_string(units.join("mayfly@.service")).unwrap();
    assert!(
        unit.contains("\nAssertPathExists=/etc/mayfly/%i.json\n"),
        "{unit}"
    );
}
