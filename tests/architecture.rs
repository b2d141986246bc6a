//! The rules of the tree, as a test: who may depend on whom, where the architecture may be asked for, where `unsafe` may
//! stand, and how long a file may be.

#![allow(clippy::unwrap_used, reason = "a test; what cannot be read fails it")]

use std::fs;
use std::path::{Path, PathBuf};

const LONGEST: usize = 400;

/// What each package may depend on: ours, and of others those that only some may use.
const ARROWS: [(&str, &[&str]); 7] = [
    (".", &["api", "devices", "vmm", "serde_json"]),
    ("api", &["vmm", "serde_json"]),
    ("vmm", &["devices", "snapshot", "kvm-bindings", "kvm-ioctls"]),
    ("devices", &["snapshot", "virtio-queue", "vm-superio"]),
    ("snapshot", &[]),
    ("jailer", &[]),
    // For tests of all of them.
    ("tests/scratch", &[]),
];

/// Packages that not everybody may depend on.
const RESTRICTED: [&str; 11] = [
    "api",
    "devices",
    "jailer",
    "scratch",
    "snapshot",
    "vmm",
    "kvm-bindings",
    "kvm-ioctls",
    "serde_json",
    "virtio-queue",
    "vm-superio",
];

/// Files that may hold `unsafe`: each talks to the kernel or to memory that it shares with the guest.
const UNSAFE: [&str; 23] = [
    "benches/",
    "devices/src/serial/sink.rs",
    "devices/src/virtio/block/disk.rs",
    "devices/src/virtio/block/execute.rs",
    "devices/src/virtio/block/uring.rs",
    "devices/src/virtio/net/passt.rs",
    "devices/src/virtio/net/stream.rs",
    "devices/src/virtio/net/tap.rs",
    "src/process.rs",
    "src/terminal/mod.rs",
    "vmm/src/arch/x86_64/irqchip.rs",
    "vmm/src/arch/x86_64/vcpu_state/xsave.rs",
    "vmm/src/arch/x86_64/vcpu_state/sregs.rs",
    "vmm/src/config/mod.rs",
    "vmm/src/kvm/slots.rs",
    "vmm/src/machine/virtio.rs",
    "vmm/src/memory/",
    "vmm/src/vcpu/kick.rs",
    "vmm/src/vcpu/pass.rs",
    "vmm/src/vcpu/run_page.rs",
    "vmm/src/vm/input.rs",
    "vmm/src/vm/leftover.rs",
    "vmm/src/vm/signals.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(String, String)> {
    let mut folders: Vec<PathBuf> = [
        "src",
        "vmm/src",
        "devices/src",
        "snapshot/src",
        "api/src",
        "jailer/src",
        "tests",
        "benches",
    ]
    .map(|folder| root().join(folder))
    .into();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(files.len() > 30, "only {} sources were found", files.len());
    files
}

/// Names in `[dependencies]` of the manifest in `folder`.
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', '=', ' ']).next());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn crates_depend_on_each_other_as_drawn() {
    for (folder, allowed) in ARROWS {
        for name in dependencies(folder) {
            let free = !RESTRICTED.contains(&name.as_str());
            assert!(
                free || allowed.contains(&name.as_str()),
                "{folder} may not depend on {name}"
            );
        }
    }
    assert!(
        dependencies("vmm").contains(&"kvm-ioctls".to_owned()),
        "the manifests are not read as they are written"
    );
}

#[test]
fn the_api_sees_only_config_and_control() {
    for (name, text) in sources().iter().filter(|(name, _)| name.starts_with("api/")) {
        for part in text.split("vmm::").skip(1) {
            let module = part
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .unwrap();
            assert!(
                ["config", "control"].contains(&module),
                "{name} uses vmm::{module}"
            );
        }
    }
}

#[test]
fn the_architecture_is_asked_for_in_one_place() {
    let words = ["target_arch", "target_family", "target_pointer_width"];
    for (name, text) in sources() {
        let here = name == "vmm/src/arch/mod.rs" || name == "tests/architecture.rs";
        assert!(
            here || !words.iter().any(|word| text.contains(word)),
            "{name} asks for the architecture"
        );
    }
}

#[test]
fn unsafe_stands_only_where_it_may() {
    for (name, text) in sources() {
        let allowed = UNSAFE.iter().any(|place| name.starts_with(place)) || name.starts_with("tests/");
        let test_code =
            name.ends_with("/tests.rs") || name.contains("/tests/") || name.ends_with("testing.rs");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let found = code.lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//") && (line.contains("unsafe {") || line.contains("unsafe impl"))
        });
        assert!(
            !found || allowed || test_code,
            "{name} holds unsafe code and is not in the list"
        );
    }
}

#[test]
fn files_are_short() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        let test_code = name.ends_with("tests.rs") || name.contains("/tests/");
        assert!(
            lines <= LONGEST || test_code,
            "{name} has {lines} lines, more than {LONGEST}: it is two files"
        );
    }
}
