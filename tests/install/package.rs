//! The Debian package.

use std::path::{Path, PathBuf};
use std::process::Command;

use scratch::{Directory, Requirement};

use crate::{expect_success, has_program, make, pages, root};

/// Name of the goal that builds the programs of an architecture.
fn goal(arch: &str) -> &'static str {
    if arch == std::env::consts::ARCH {
        "make build"
    } else {
        "make aarch64"
    }
}

/// Packages the build of `arch` and returns the path, if there is a build. Otherwise reports that the test is skipped.
#[track_caller]
fn package(arch: &str) -> Option<PathBuf> {
    pages()?;
    let program = root().join("dist").join(arch).join("mayfly-tools");
    if !program.exists() {
        let missing = format!("the programs in dist/{arch}");
        scratch::skip(&missing, &format!("run {}", goal(arch)));
        return None;
    }
    let printed = expect_success(&mut make(&["package", &format!("ARCH={arch}")]));
    Some(root().join(printed.trim()))
}

fn field(package: &Path, name: &str) -> String {
    let printed = expect_success(Command::new("dpkg-deb").arg("--field").arg(package).arg(name));
    printed.trim().to_owned()
}

/// Architectures of the packages that this machine builds.
fn architectures() -> &'static [(&'static str, &'static str, u16)] {
    // The last is e_machine of the ELF header.
    let all = &[("x86_64", "amd64", 62), ("aarch64", "arm64", 183)];
    if std::env::consts::ARCH == "x86_64" {
        all
    } else {
        &all[1..]
    }
}

#[test]
fn packages_are_accepted_by_lintian() {
    if !has_program("dpkg-deb", "dpkg") || !has_program("lintian", "lintian") {
        return;
    }
    for (arch, architecture, machine) in architectures() {
        let Some(package) = package(arch) else { return };
        assert_eq!(field(&package, "Architecture"), *architecture);
        let version = field(&package, "Version");
        assert!(
            version.starts_with(concat!(env!("CARGO_PKG_VERSION"), "-")),
            "{version}"
        );
        let unpacked = Directory::new();
        expect_success(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&package)
                .arg(unpacked.root()),
        );
        for program in ["mayfly", "mayfly-jailer", "mayfly-standby", "mayfly-tools"] {
            let content = std::fs::read(unpacked.path("usr/bin").join(program)).unwrap();
            let header: [u8; 2] = content[18..20].try_into().unwrap();
            assert_eq!(u16::from_le_bytes(header), *machine, "{program}");
        }
        let mut lintian = Command::new("lintian");
        lintian
            .args(["--allow-root", "--fail-on", "error,warning"])
            .arg(&package);
        let report = expect_success(&mut lintian);
        let findings = report
            .lines()
            .filter(|line| line.starts_with("E:") || line.starts_with("W:"));
        assert_eq!(findings.count(), 0, "{report}");
    }
}

#[test]
fn package_runs_in_a_clean_debian_system() {
    let Some(package) = package(std::env::consts::ARCH) else {
        return;
    };
    if !scratch::require(Requirement::Root) || !scratch::require(Requirement::MountNamespace) {
        return;
    }
    let packages = root().join(".cache/hosts/debian-1/packages.tgz");
    if !packages.exists() {
        return scratch::skip("the packages of a Debian system", "run make setup");
    }
    let guests = root().join("dist/guests").join(std::env::consts::ARCH);
    let guest = [guests.join("hello.elf"), guests.join("fc/hello.elf")];
    let guest = guest.iter().find(|guest| guest.exists()).unwrap();
    let directory = Directory::new();
    let mut script = Command::new("unshare");
    script
        .args(["--mount", "--propagation", "private"])
        .arg(root().join("tests/install/debian.sh"))
        .args([directory.root(), &packages, &package, guest]);
    let printed = expect_success(&mut script);
    if !Path::new("/dev/kvm").exists() {
        assert!(printed.contains("kvm          missing"), "{printed}");
        return scratch::skip(
            "/dev/kvm, for the guest of the package",
            "run the tests on a host with KVM",
        );
    }
    for line in [
        concat!("mayfly ", env!("CARGO_PKG_VERSION")),
        "mayfly can run guests on this host",
        "hello from mayfly",
        "/usr/share/man/man1/mayfly.1.gz",
        "/usr/share/man/man1/mayfly-run.1.gz",
        "removed",
    ] {
        assert!(
            printed.lines().any(|known| known.trim_end() == line),
            "{line:?} is missing in {printed}"
        );
    }
}
