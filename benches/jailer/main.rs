//! Compares mayfly-jailer with the floor program, and with Firecracker's jailer if `make setup` has fetched it: from the spawn to the
//! first byte of the program in the jail. Each round runs every command once, so that other load of the host affects all alike.
//! `make jailer` runs it as root; ROUNDS in the environment sets the number of rounds.

#![allow(missing_docs, reason = "a program")]

#[path = "../spawn/mod.rs"]
mod spawn;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use std::{env, fs, io, ptr};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Maximum of the ratio to the floor.
const GOAL: f64 = 1.3;
const USER: &str = "1234";
/// Directory of the programs, in the file system of the jails: the kernel then copies them by `copy_file_range`.
const PROGRAMS: &str = "programs";

type Result<T> = std::result::Result<T, String>;

/// A cgroup hierarchy of this host.
struct Cgroup {
    mount: PathBuf,
    version: &'static str,
    file: &'static str,
    value: &'static str,
    members: &'static str,
}

/// Returns a hierarchy with a file that the bench may set.
fn find_cgroup() -> Option<Cgroup> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let find = |kind: &str, option: &str| {
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mut found = fields.filter(|fields| {
            fields[2] == kind && (option.is_empty() || fields[3].split(',').any(|word| word == option))
        });
        found.next().map(|fields| PathBuf::from(fields[1]))
    };
    let v1 = find("cgroup", "pids").map(|mount| Cgroup {
        mount,
        version: "1",
        file: "pids.max",
        value: "77",
        members: "tasks",
    });
    v1.or_else(|| {
        find("cgroup2", "").map(|mount| Cgroup {
            mount,
            version: "2",
            file: "cgroup.max.depth",
            value: "3",
            members: "cgroup.procs",
        })
    })
}

/// Program of a row.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Floor,
    Mayfly,
    Firecracker,
}

struct Row {
    name: &'static str,
    kind: Kind,
    /// Index of the floor.
    floor: usize,
    has_cgroup: bool,
}

fn dist(name: &str) -> String {
    format!("{ROOT}/dist/{name}")
}

fn command(row: &Row, base: &Path, id: &str, cgroup: Option<&Cgroup>) -> Vec<String> {
    let program = |name: &str| base.join(PROGRAMS).join(name).display().to_string();
    let base = base.display().to_string();
    let mut words: Vec<String> = match row.kind {
        Kind::Floor => [
            dist("jailer/floor"),
            base,
            id.into(),
            program("vmm"),
            USER.into(),
            USER.into(),
        ]
        .into(),
        kind => {
            let (jailer, name) = match kind {
                Kind::Firecracker => (firecracker(), "firecracker"),
                _ => (dist("mayfly-jailer"), "vmm"),
            };
            let mut words = vec![jailer];
            words.extend(["--id", id, "--uid", USER, "--gid", USER, "--exec-file"].map(str::to_owned));
            words.push(program(name));
            words.extend(["--chroot-base-dir".to_owned(), base]);
            words
        }
    };
    if let (true, Some(cgroup)) = (row.has_cgroup, cgroup) {
        let mount = cgroup.mount.display().to_string();
        match row.kind {
            Kind::Floor => words.extend([
                mount,
                cgroup.file.into(),
                cgroup.value.into(),
                cgroup.members.into(),
            ]),
            _ => words.extend([
                "--parent-cgroup".into(),
                "vmm".into(),
                "--cgroup-version".into(),
                cgroup.version.into(),
                "--cgroup".into(),
                format!("{}={}", cgroup.file, cgroup.value),
            ]),
        }
    }
    words
}

fn firecracker() -> String {
    format!("{ROOT}/.cache/firecracker/1.12.1/jailer")
}

fn rows(has_cgroup: bool) -> Vec<Row> {
    let row = |name, kind, floor, has_cgroup| Row {
        name,
        kind,
        floor,
        has_cgroup,
    };
    let mut rows = vec![
        row("floor", Kind::Floor, 0, false),
        row("mayfly-jailer", Kind::Mayfly, 0, false),
    ];
    if has_cgroup {
        rows.push(row("floor, cgroup", Kind::Floor, 2, true));
        rows.push(row("mayfly-jailer, cgroup", Kind::Mayfly, 2, true));
    }
    if Path::new(&firecracker()).exists() {
        rows.push(row("Firecracker's jailer 1.12.1", Kind::Firecracker, 0, false));
        if has_cgroup {
            rows.push(row(
                "Firecracker's jailer 1.12.1, cgroup",
                Kind::Firecracker,
                2,
                true,
            ));
        }
    }
    rows
}

/// Gives this process a mount namespace with an empty file system in memory at `path`.
fn mount_base(path: &Path) -> Result<()> {
    let failed = |what: &str| format!("cannot {what}: {}; run it as root", io::Error::last_os_error());
    // SAFETY: the call takes no pointer.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(failed("create a mount namespace"));
    }
    let path = CString::new(path.display().to_string()).map_err(|error| error.to_string())?;
    let (kind, none) = (c"tmpfs".as_ptr(), ptr::null());
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the path is a C string, and the other pointers may be null.
    if unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) } != 0 {
        return Err(failed("make the mounts private"));
    }
    // SAFETY: type and path are C strings for the length of the call.
    if unsafe { libc::mount(kind, path.as_ptr(), kind, 0, none.cast()) } != 0 {
        return Err(failed("mount a file system in memory"));
    }
    Ok(())
}

/// Removes the file system and its directory.
fn unmount_base(path: &Path) {
    if let Ok(name) = CString::new(path.display().to_string()) {
        // SAFETY: the path is a C string for the length of the call.
        unsafe { libc::umount2(name.as_ptr(), libc::MNT_DETACH) };
    }
    let _ = fs::remove_dir(path);
}

/// Removes the files and cgroups of a run.
fn clean(base: &Path, id: &str, cgroup: Option<&Cgroup>) {
    for program in ["vmm", "firecracker"] {
        let _ = fs::remove_dir_all(base.join(program));
    }
    if let Some(cgroup) = cgroup {
        let _ = fs::remove_dir(cgroup.mount.join("vmm").join(id));
        let _ = fs::remove_dir(cgroup.mount.join("vmm"));
    }
}

fn median(values: &mut [Duration]) -> Duration {
    values.sort();
    values[values.len() / 2]
}

/// Returns the steps of the floor, in their order, with the median of their microseconds.
fn breakdown(row: &Row, base: &Path, cgroup: Option<&Cgroup>) -> Result<Vec<(String, f64)>> {
    let mut order = Vec::new();
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for round in 0..51 {
        let id = format!("times-{round}");
        let words = command(row, base, &id, cgroup);
        let mut timed = Command::new(&words[0]);
        timed.args(&words[1..]).env("TIMES", "1").stdout(Stdio::null());
        #[allow(clippy::disallowed_methods, reason = "a bench may hang; its user ends it")]
        let output = timed.output().map_err(|error| error.to_string())?;
        clean(base, &id, cgroup);
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            let (name, time) = line.rsplit_once(' ').ok_or("the floor printed no times")?;
            if !order.contains(&name.to_owned()) {
                order.push(name.to_owned());
            }
            let time = time.parse().map_err(|_| format!("floor: {line}"))?;
            times.entry(name.to_owned()).or_default().push(time);
        }
    }
    let middle = |name: String| {
        let mut values = times.remove(&name).unwrap_or_default();
        values.sort_by(f64::total_cmp);
        let value = values[values.len() / 2];
        (name, value)
    };
    Ok(order.into_iter().map(middle).collect())
}

fn measure() -> Result<bool> {
    let base = env::temp_dir().join(format!("mayfly-jailer-{}", std::process::id()));
    fs::create_dir(&base).map_err(|error| format!("{}: {error}", base.display()))?;
    let result = mount_base(&base).and_then(|()| measure_in(&base));
    unmount_base(&base);
    result
}

/// Measures all rows with jails in `base`.
fn measure_in(base: &Path) -> Result<bool> {
    let rounds = env::var("ROUNDS").ok().and_then(|text| text.parse().ok());
    let rounds: usize = rounds.unwrap_or(200);
    fs::create_dir(base.join(PROGRAMS)).map_err(|error| error.to_string())?;
    for name in ["vmm", "firecracker"] {
        let (from, to) = (dist(&format!("jailer/{name}")), base.join(PROGRAMS).join(name));
        fs::copy(&from, to).map_err(|error| format!("{from}: {error}"))?;
    }
    let cgroup = find_cgroup();
    let cgroup = cgroup.as_ref();
    let rows = rows(cgroup.is_some());
    let mut times = vec![Vec::with_capacity(rounds); rows.len()];
    let mut ends = times.clone();
    // The first two rounds fill the page cache and do not count.
    for round in 0..rounds + 2 {
        for ((row, times), ends) in rows.iter().zip(&mut times).zip(&mut ends) {
            let id = format!("vm-{round}");
            let words = command(row, base, &id, cgroup);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let run = spawn::run(&words).map_err(|error| format!("{}: {error}", row.name))?;
            clean(base, &id, cgroup);
            if round >= 2 {
                times.push(run.first_byte);
                ends.push(run.end);
            }
        }
    }
    let medians: Vec<Duration> = times.iter_mut().map(|times| median(times)).collect();
    let ends: Vec<Duration> = ends.iter_mut().map(|times| median(times)).collect();
    println!("| command | spawn to first byte | ratio | spawn to exit |\n|---|---|---|---|");
    let mut is_met = true;
    for ((row, time), end) in rows.iter().zip(&medians).zip(&ends) {
        let ratio = time.as_secs_f64() / medians[row.floor].as_secs_f64();
        is_met &= row.kind != Kind::Mayfly || ratio <= GOAL;
        let (name, time, end) = (row.name, time.as_micros(), end.as_micros());
        println!("| {name} | {time} us | {ratio:.2} | {end} us |");
    }
    for row in rows.iter().filter(|row| row.kind == Kind::Floor) {
        println!("\n| step of {} | us |\n|---|---|", row.name);
        for (name, time) in breakdown(row, base, cgroup)? {
            println!("| {name} | {time:.0} |");
        }
    }
    println!(
        "\ngoal: mayfly-jailer at most {GOAL} times its floor: {}",
        if is_met { "met" } else { "missed" }
    );
    Ok(is_met)
}

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}; run `make jailer`, which builds the programs");
            ExitCode::FAILURE
        }
    }
}
