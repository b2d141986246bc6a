//! Rules of the tree: dependencies between crates, modules and files, the place of architecture-specific code and of `unsafe`, and the
//! length of files.

#![allow(clippy::unwrap_used, reason = "an unreadable file fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Maximum lines of a file without its tests.
const MAX_LINES: usize = 800;

/// Crates with their allowed dependencies: ours, and those of [`RESTRICTED`].
const ARROWS: [(&str, &[&str]); 11] = [
    (".", &["api", "devices", "vmm", "serde_json"]),
    ("api", &["vmm", "serde_json"]),
    (
        "vmm",
        &["devices", "gdb", "snapshot", "kvm-bindings", "kvm-ioctls"],
    ),
    ("vmm/gdb", &["gdbstub", "gdbstub_arch"]),
    ("devices", &["snapshot", "virtio-queue", "vm-superio"]),
    ("snapshot", &[]),
    ("jailer", &[]),
    // Includes the help texts by their paths.
    ("resources/manual", &[]),
    // Temporary files for the tests of all crates.
    ("tests/scratch", &[]),
    // Includes modules of devices and vmm by their paths.
    ("tests/interleavings", &[]),
    // With criterion.
    ("benches/boot", &[]),
];

/// Dependencies that only some crates may have.
const RESTRICTED: [&str; 14] = [
    "api",
    "devices",
    "gdb",
    "gdbstub",
    "gdbstub_arch",
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

/// Modules of vmm, from the top. A module imports only from rows below its own.
const VMM_LAYERS: [&[&str]; 15] = [
    &["event_loop"],
    &["control"],
    &["persistence"],
    &["debugger", "console"],
    &["vm"],
    &["machine"],
    &["vcpu"],
    &["arch"],
    &["config"],
    &["boot"],
    &["memory"],
    &["kvm"],
    &["identity"],
    &[
        "timeline",
        "error_chain",
        "emergency",
        "cancellation",
        "channel",
        "private_socket",
    ],
    &["sampling", "system_call"],
];

/// Crates whose files must not import each other in a cycle.
const CRATES: [&str; 8] = [
    "src",
    "vmm/src",
    "vmm/gdb/src",
    "devices/src",
    "snapshot/src",
    "api/src",
    "jailer/src",
    "resources/manual",
];

/// Places in vmm that name architectures: their own code, settings of the user, and formats of images.
const NAMING: [&str; 4] = [
    "vmm/src/arch/aarch64/",
    "vmm/src/arch/x86_64/",
    "vmm/src/boot/",
    "vmm/src/config/",
];

/// Words of one architecture, which no identifier elsewhere in vmm contains.
const NATIVE_WORDS: [&str; 37] = [
    // Chips and I/O ports of a PC.
    "apic",
    "cmos",
    "i8042",
    "ioapic",
    "irqchip",
    "keyboard",
    "lapic",
    "pic",
    "pit",
    "port_io",
    "ports",
    // Descriptions of a machine.
    "acpi",
    "e820",
    "fdt",
    "mptable",
    "vmgenid",
    // Processors.
    "cpuid",
    "el1",
    "hlt",
    "mpidr",
    "msr",
    "msrs",
    "rflags",
    "sregs",
    "sve",
    "tsc",
    "xsave",
    // Chips and firmware of aarch64.
    "gic",
    "pl011",
    "pl031",
    "psci",
    "redistributor",
    "vgic",
    // Names.
    "aarch64",
    "arm",
    "arm64",
    "x86",
];

/// Exits that KVM makes on one architecture.
const NATIVE_EXITS: [&str; 6] = ["Hlt", "IoIn", "IoOut", "IoapicEoi", "IrqWindowOpen", "Shutdown"];

/// Files that may contain `unsafe`: each calls the kernel, or accesses memory that it shares with the guest.
const UNSAFE: &[&str] = &[
    "api/src/http/holder.rs",
    "benches/",
    "devices/src/legacy/serial/output.rs",
    "devices/src/medium.rs",
    "devices/src/virtio/block/disk.rs",
    "devices/src/virtio/block/execute.rs",
    "devices/src/virtio/block/lock.rs",
    "devices/src/virtio/block/uring.rs",
    "devices/src/virtio/net/passt.rs",
    "devices/src/virtio/net/stream.rs",
    "devices/src/virtio/net/tap.rs",
    "jailer/src/sys.rs",
    "src/allocator.rs",
    "src/filters/mod.rs",
    "src/process.rs",
    "src/shell/message.rs",
    "src/shell/mod.rs",
    "src/standby/net/sys.rs",
    "src/standby/sys.rs",
    "src/terminal/mod.rs",
    "src/tools/sys.rs",
    "vmm/src/arch/aarch64/cache.rs",
    "vmm/src/arch/aarch64/clock.rs",
    "vmm/src/arch/aarch64/gic_state.rs",
    "vmm/src/arch/aarch64/vcpu.rs",
    "vmm/src/arch/x86_64/irqchip.rs",
    "vmm/src/arch/x86_64/ports.rs",
    "vmm/src/arch/x86_64/vcpu_state/sregs.rs",
    "vmm/src/arch/x86_64/vcpu_state/tsc.rs",
    "vmm/src/arch/x86_64/vcpu_state/xsave.rs",
    "vmm/src/config/host.rs",
    "vmm/src/console/pty.rs",
    "vmm/src/console/relay.rs",
    "vmm/src/emergency.rs",
    "vmm/src/event_loop/input.rs",
    "vmm/src/event_loop/leftover.rs",
    "vmm/src/event_loop/signals.rs",
    "vmm/src/identity.rs",
    "vmm/src/kvm/kick.rs",
    "vmm/src/kvm/run_page.rs",
    "vmm/src/kvm/sample_timer.rs",
    "vmm/src/kvm/slots.rs",
    "vmm/src/kvm/statistics.rs",
    "vmm/src/machine/passed_files.rs",
    "vmm/src/memory/",
    "vmm/src/persistence/generations.rs",
    "vmm/src/private_socket.rs",
    "vmm/src/vcpu/pre_entry.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns path and text of all Rust files below `directories`.
fn sources_below(directories: &[&str]) -> Vec<(String, String)> {
    let mut directories: Vec<PathBuf> = directories.iter().map(|path| root().join(path)).collect();
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}

fn sources() -> Vec<(String, String)> {
    let files = sources_below(&[&CRATES[..], &["tests", "benches"]].concat());
    assert!(files.len() > 30, "only {} files were found", files.len());
    files
}

fn is_test_file(name: &str) -> bool {
    name.ends_with("/tests.rs")
        || name.contains("/tests/")
        || name.starts_with("tests/")
        || name.contains("testing")
}

/// Returns the files of the modules that `text` declares for tests alone.
fn test_modules(name: &str, text: &str) -> Vec<String> {
    let directory = name.strip_suffix("mod.rs").or(name.strip_suffix("lib.rs"));
    let directory = directory.map_or_else(|| name.replace(".rs", "/"), str::to_owned);
    let declarations = text
        .split("#[cfg(test)]\n")
        .skip(1)
        .filter_map(|rest| rest.lines().next());
    let modules = declarations.filter_map(|line| line.split("mod ").nth(1)?.strip_suffix(';'));
    modules.map(|module| format!("{directory}{module}.rs")).collect()
}

/// Returns `text` without comments and without inline tests.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code
        .lines()
        .map(|line| match line.trim_start().starts_with("//") {
            true => "",
            false => line,
        });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the names in `[dependencies]` of the manifest in `directory`.
fn dependencies(directory: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(directory).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', '=', ' ']).next());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn crates_depend_only_along_arrows() {
    for (directory, allowed) in ARROWS {
        for name in dependencies(directory) {
            let is_free = !RESTRICTED.contains(&name.as_str());
            assert!(
                is_free || allowed.contains(&name.as_str()),
                "{directory} must not depend on {name}"
            );
        }
    }
    assert!(
        dependencies("vmm").contains(&"kvm-ioctls".to_owned()),
        "the manifests cannot be parsed"
    );
}

#[test]
fn api_uses_only_config_and_control() {
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
fn architecture_is_queried_in_one_file() {
    let words = ["target_arch", "target_family", "target_pointer_width"];
    for (name, text) in sources() {
        // The tests name scenarios of one architecture.
        let is_allowed = name == "vmm/src/arch/mod.rs" || name.starts_with("tests/");
        assert!(
            is_allowed || !words.iter().any(|word| text.contains(word)),
            "{name} depends on the architecture"
        );
    }
}

/// Returns the identifiers of `code`, without those in string literals.
fn identifiers(code: &str) -> BTreeSet<String> {
    let mut identifiers = BTreeSet::new();
    // No literal of vmm contains a quotation mark or spans a line that begins with one.
    for (index, part) in code
        .replace("\\\"", "")
        .replace("'\"'", "")
        .split('"')
        .enumerate()
    {
        if index % 2 == 0 {
            let words = part.split(|c: char| !c.is_alphanumeric() && c != '_');
            identifiers.extend(words.map(str::to_owned));
        }
    }
    identifiers
}

/// Returns the words of `identifier` in lower case, separated and surrounded by `_`.
fn words(identifier: &str) -> String {
    let mut words = String::from("_");
    let mut was_lower = false;
    for c in identifier.chars() {
        if c.is_uppercase() && was_lower {
            words.push('_');
        }
        was_lower = c.is_lowercase() || c.is_numeric();
        words.extend(c.to_lowercase());
    }
    words + "_"
}

/// Returns `code` without the lines that select the modules of an architecture.
fn without_selection(code: &str) -> String {
    let is_selection = |line: &&str| {
        let starts = ["#[cfg(", "mod ", "pub mod ", "pub use "];
        starts.iter().any(|start| line.trim_start().starts_with(start))
    };
    let lines = code.lines().filter(|line| !is_selection(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn neutral_code_has_no_words_of_one_architecture() {
    let sources = sources_below(&["vmm/src"]);
    let tests: BTreeSet<String> = sources
        .iter()
        .flat_map(|(name, text)| test_modules(name, text))
        .collect();
    let mut checked = 0;
    for (name, text) in &sources {
        let names_architectures = NAMING.iter().any(|place| name.starts_with(place));
        if names_architectures || is_test_file(name) || tests.contains(name) {
            continue;
        }
        checked += 1;
        let mut code = code(text);
        if name == "vmm/src/arch/mod.rs" {
            code = without_selection(&code);
        }
        for identifier in identifiers(&code) {
            let words = words(&identifier);
            let is_native = NATIVE_EXITS.contains(&identifier.as_str())
                || NATIVE_WORDS
                    .iter()
                    .any(|word| words.contains(&format!("_{word}_")));
            assert!(
                !is_native,
                "{name} contains {identifier}, a word of one architecture; move its code behind Platform or Cpu"
            );
        }
    }
    assert!(checked > 50, "only {checked} files were found");
}

#[test]
fn traits_of_architectures_are_described() {
    let name = "vmm/src/arch/mod.rs";
    let text = fs::read_to_string(root().join(name)).unwrap();
    let table: String = text.lines().filter(|line| line.starts_with("//! |")).collect();
    let mut count = 0;
    for traits in ["pub trait Platform", "pub trait Cpu"] {
        let body = text.split(traits).nth(1).unwrap();
        let body = body.split("\n}\n").next().unwrap();
        for line in body.lines() {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            // Items are indented by one level.
            let ["", "", "", "", "fn" | "const" | "type", item, ..] = words[..] else {
                continue;
            };
            count += 1;
            assert!(
                table.contains(&format!("`{item}`")),
                "{name} does not describe {item} in its table for a further architecture"
            );
        }
    }
    assert!(count > 40, "only {count} items were found");
}

#[test]
fn unsafe_is_in_listed_files() {
    for (name, text) in sources() {
        let is_allowed = UNSAFE.iter().any(|place| name.starts_with(place)) || is_test_file(&name);
        let is_found = code(&text)
            .lines()
            .any(|line| line.contains("unsafe {") || line.contains("unsafe impl"));
        assert!(
            !is_found || is_allowed,
            "{name} contains unsafe code and is not in the list"
        );
    }
    for place in UNSAFE {
        assert!(
            root().join(place).exists(),
            "{place} is in the list and does not exist"
        );
    }
}

#[test]
fn files_are_short() {
    for (name, text) in sources() {
        let lines = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap()
            .lines()
            .count();
        assert!(
            lines <= MAX_LINES || is_test_file(&name),
            "{name} has {lines} lines without its tests; the maximum is {MAX_LINES}"
        );
    }
}

/// A leaf of a `use` declaration, or a path in code.
#[derive(Clone, Debug)]
struct Import {
    path: Vec<String>,
    /// Name in the importing module.
    name: String,
    is_public: bool,
}

/// Adds the leaves of the use tree `text` below `prefix`.
fn add_leaves(prefix: &[String], text: &str, is_public: bool, imports: &mut Vec<Import>) {
    let text = text.trim();
    if let Some(open) = text.find('{') {
        let mut path = prefix.to_vec();
        path.extend(
            text[..open]
                .split("::")
                .map(str::trim)
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
        );
        let inner = &text[open + 1..text.rfind('}').unwrap()];
        let mut depth = 0;
        for part in inner.split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        }) {
            add_leaves(&path, part, is_public, imports);
        }
    } else if !text.is_empty() {
        let (target, alias) = text
            .split_once(" as ")
            .map_or((text, None), |(target, alias)| (target, Some(alias)));
        let mut path = prefix.to_vec();
        path.extend(target.split("::").map(|name| name.trim().to_owned()));
        if path.last().is_some_and(|name| name == "self") {
            path.pop();
        }
        let name = alias.map_or_else(
            || path.last().cloned().unwrap_or_default(),
            |alias| alias.trim().to_owned(),
        );
        imports.push(Import {
            path,
            name,
            is_public,
        });
    }
}

/// Source file of a crate.
struct Module {
    path: Vec<String>,
    imports: Vec<Import>,
}

/// The files of one crate by their module path.
struct Crate {
    names: BTreeMap<Vec<String>, String>,
    modules: BTreeMap<String, Module>,
}

impl Crate {
    fn read(directory: &str) -> Self {
        let (mut names, mut modules) = (BTreeMap::new(), BTreeMap::new());
        let sources = sources_below(&[directory]);
        let tests: BTreeSet<String> = sources
            .iter()
            .flat_map(|(name, text)| test_modules(name, text))
            .collect();
        for (name, text) in sources {
            if is_test_file(&name) || tests.contains(&name) {
                continue;
            }
            let inner = name[directory.len() + 1..].strip_suffix(".rs").unwrap();
            let mut path: Vec<String> = inner.split('/').map(str::to_owned).collect();
            if path
                .last()
                .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
            {
                path.pop();
            }
            names.insert(path.clone(), name.clone());
            let imports = imports(&code(&text));
            modules.insert(name, Module { path, imports });
        }
        Self { names, modules }
    }

    /// Returns the file that defines the item at `path`, seen from the module `from`; none for another crate.
    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<&str> {
        let mut module = from.to_vec();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => module.clear(),
            "self" => {}
            "super" => drop(module.pop()),
            child => {
                module.push(child.to_owned());
                if !self.names.contains_key(&module) {
                    return None;
                }
                module.pop();
                rest = &[&["self".to_owned()][..], rest].concat().leak()[..];
            }
        }
        rest = &rest[1..];
        while let Some(name) = rest.first() {
            if name == "super" {
                module.pop();
                rest = &rest[1..];
                continue;
            }
            module.push(name.clone());
            if !self.names.contains_key(&module) {
                module.pop();
                break;
            }
            rest = &rest[1..];
        }
        let file = self.names.get(&module)?;
        if let (Some(item), true) = (rest.first(), depth < 8) {
            let imports = &self.modules[file].imports;
            if let Some(import) = imports
                .iter()
                .find(|import| import.name == *item && import.path.len() > 1)
            {
                // The item of another crate, re-exported here, belongs to this file.
                return self.resolve(&module, &import.path, depth + 1).or(Some(file));
            }
        }
        Some(file)
    }

    /// Returns the files that each file imports from. A re-export is no import.
    fn edges(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let edge = |(name, module): (&'_ String, &'_ Module)| {
            let targets = module.imports.iter().filter(|import| !import.is_public);
            let targets = targets.filter_map(|import| self.resolve(&module.path, &import.path, 0));
            let targets: BTreeSet<&str> = targets.filter(|target| *target != name).collect();
            (self.modules.get_key_value(name).unwrap().0.as_str(), targets)
        };
        self.modules.iter().map(edge).collect()
    }
}

/// Returns the `use` declarations of `code`, and the paths in the rest of it that name a module.
fn imports(code: &str) -> Vec<Import> {
    let mut imports = Vec::new();
    let mut rest = String::new();
    let mut statement: Option<(bool, String)> = None;
    for line in code.lines() {
        let trimmed = line.trim_start();
        let visibility = trimmed.find("use ").filter(|start| {
            let before = trimmed[..*start].trim();
            before.is_empty() || before == "pub" || (before.starts_with("pub(") && before.ends_with(')'))
        });
        if let (None, Some(start)) = (&statement, visibility) {
            statement = Some((start > 0, trimmed[start + 4..].to_owned()));
        } else if let Some((_, text)) = &mut statement {
            text.push(' ');
            text.push_str(trimmed);
        } else {
            rest.push_str(line);
            rest.push('\n');
        }
        if let Some((is_public, text)) = statement.take_if(|(_, text)| text.contains(';')) {
            add_leaves(&[], text.split(';').next().unwrap(), is_public, &mut imports);
        }
    }
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in rest
        .split(|c: char| !is_path(c))
        .filter(|word| word.contains("::"))
    {
        let path: Vec<String> = word.split("::").map(str::to_owned).collect();
        if path.iter().all(|name| !name.is_empty() && !name.contains(':')) {
            imports.push(Import {
                path,
                name: String::new(),
                is_public: false,
            });
        }
    }
    imports
}

/// Returns a cycle through `start`, if there is one.
fn cycle<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>, start: &'a str) -> Option<Vec<&'a str>> {
    let mut paths = vec![vec![start]];
    let mut visited = BTreeSet::new();
    while let Some(path) = paths.pop() {
        for next in edges.get(path.last()?)? {
            if *next == start {
                return Some(path);
            }
            if visited.insert(*next) {
                paths.push([&path[..], &[*next]].concat());
            }
        }
    }
    None
}

#[test]
fn files_do_not_import_in_cycles() {
    let mut found = BTreeSet::new();
    let mut count = 0;
    for directory in CRATES {
        let files = Crate::read(directory);
        let edges = files.edges();
        count += edges.values().map(BTreeSet::len).sum::<usize>();
        for start in edges.keys() {
            if let Some(mut cycle) = cycle(&edges, start) {
                cycle.sort_unstable();
                found.insert(cycle.join(" <-> "));
            }
        }
    }
    assert!(count > 100, "only {count} imports were found");
    let found: Vec<_> = found.into_iter().collect();
    assert!(found.is_empty(), "import cycles:\n{}", found.join("\n"));
}

#[test]
fn vmm_modules_import_downwards() {
    let layer = |file: &str| {
        let module = file.strip_prefix("vmm/src/").unwrap();
        let module = module.split(['/', '.']).next().unwrap();
        VMM_LAYERS.iter().position(|layer| layer.contains(&module))
    };
    let files = Crate::read("vmm/src");
    let mut count = 0;
    for (file, targets) in files.edges() {
        let Some(own) = layer(file) else { continue };
        for target in targets {
            let Some(other) = layer(target) else { continue };
            let is_same = target.split('/').nth(2) == file.split('/').nth(2);
            count += usize::from(!is_same);
            assert!(
                is_same || own < other,
                "{file} imports from {target}, which is not below it"
            );
        }
    }
    assert!(count > 20, "only {count} imports between modules were found");
    let modules = sources_below(&["vmm/src"]).into_iter().map(|(name, _)| name);
    for file in modules.filter(|name| name != "vmm/src/lib.rs") {
        assert!(layer(&file).is_some(), "{file} is in no layer");
    }
}
