//! Cgroups in directories of a temporary file system, whose files do not behave like those of the kernel, but show each write.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use super::{Branch, Mounts, enable, join_v1, join_v2};
use crate::args::{self, Args, Command};
use crate::undo::Undo;

const MOUNTS: &str = "\
25 30 0:23 / /sys rw - sysfs sysfs rw
35 34 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
36 34 0:31 /docker/x /sys/fs/cgroup/cpu\\040set rw - cgroup cgroup rw,cpuset
37 34 0:32 / /sys/fs/cgroup/unified rw shared:9 master:2 - cgroup2 cgroup2 rw,nsdelegate
";

#[test]
fn mounts_of_controllers_are_found() {
    let mounts = Mounts(MOUNTS.into());
    let find = |kind, option| mounts.find(kind, option);
    assert_eq!(
        find("cgroup", Some("cpu")).as_deref(),
        Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
    );
    assert_eq!(
        find("cgroup", Some("cpuset")).as_deref(),
        Some(Path::new("/sys/fs/cgroup/cpu set"))
    );
    assert_eq!(find("cgroup", Some("memory")), None);
    assert_eq!(
        find("cgroup2", None).as_deref(),
        Some(Path::new("/sys/fs/cgroup/unified"))
    );
    assert_eq!(Mounts(String::new()).find("cgroup2", None), None);
}

/// Returns the arguments of `options`.
fn args(options: &str) -> Args {
    let line = format!("--id vm1 --exec-file f --uid 1 --gid 1 {options}");
    match args::parse(line.split_whitespace().map(Into::into)) {
        Ok(Command::Jail(args)) => *args,
        other => panic!("{other:?}"),
    }
}

/// Creates the files that the kernel would create in the cgroup `path`.
fn fill(host: &scratch::Directory, path: &str, files: &[(&str, &str)]) {
    fs::create_dir_all(host.path(path)).unwrap();
    for (name, value) in files {
        host.write(&format!("{path}/{name}"), value);
    }
}

fn mounts(host: &scratch::Directory, system: &str) -> Mounts {
    let root = host.root().display();
    Mounts(format!("35 34 0:30 / {root}/h rw - {system}\n"))
}

fn read(host: &scratch::Directory, path: &str) -> String {
    fs::read_to_string(host.path(path)).unwrap()
}

const CPUSET_EMPTY: [(&str, &str); 3] = [("cpuset.cpus", ""), ("cpuset.mems", ""), ("tasks", "")];

#[test]
fn cpuset_inherits_values_through_all_levels() {
    let host = scratch::Directory::new();
    fill(
        &host,
        "h",
        &[("cpuset.cpus", "0-3\n"), ("cpuset.mems", "0\n"), ("tasks", "")],
    );
    fill(&host, "h/a", &[("cpuset.cpus", "1-2"), ("cpuset.mems", "")]);
    fill(&host, "h/a/b", &CPUSET_EMPTY);
    fill(&host, "h/a/b/vm1", &CPUSET_EMPTY);
    let args = args("--cgroup cpuset.cpus=2");
    let mut undo = Undo::default();
    let parents = ["a", "b"].map(OsStr::new);
    join_v1(
        &mounts(&host, "cgroup cgroup rw,cpuset"),
        &args,
        &parents,
        &mut undo,
    )
    .unwrap();
    assert_eq!(read(&host, "h/a/cpuset.mems"), "0\n");
    // The file keeps the end of a longer value that was written over.
    assert_eq!(read(&host, "h/a/b/cpuset.cpus"), "1-2");
    assert_eq!(read(&host, "h/a/b/vm1/cpuset.cpus"), "2-2");
    assert_eq!(read(&host, "h/a/b/vm1/cpuset.mems"), "0\n");
    assert_eq!(read(&host, "h/a/b/vm1/tasks"), "0");
    // The undo leaves the cgroup, which existed.
    assert!(undo.run().is_empty());
    assert_eq!(read(&host, "h/tasks"), "0");
    assert!(host.path("h/a/b/vm1").exists());
}

#[test]
fn controllers_of_version_2_are_enabled_where_they_are_not() {
    let host = scratch::Directory::new();
    fill(&host, "h", &[("cgroup.subtree_control", "cpu memory")]);
    fill(&host, "h/a", &[("cgroup.subtree_control", "cpu")]);
    fill(&host, "h/a/vm1", &[]);
    let branch = Branch::create(&host.path("h"), &[OsStr::new("a")], "vm1", &mut Undo::default()).unwrap();
    enable(&branch.levels[..2], "memory").unwrap();
    assert_eq!(read(&host, "h/cgroup.subtree_control"), "cpu memory");
    assert_eq!(read(&host, "h/a/cgroup.subtree_control"), "+memory");
}

#[test]
fn new_cgroups_are_removed_by_undo() {
    let host = scratch::Directory::new();
    fill(&host, "h", &[("cgroup.controllers", "memory pids")]);
    let mut undo = Undo::default();
    let error = join_v2(
        &mounts(&host, "cgroup2 cgroup2 rw"),
        &args("--cgroup-version 2 --cgroup cgroup.freeze=0"),
        &[OsStr::new("a")],
        &mut undo,
    );
    let text = error.unwrap_err().describe();
    assert!(
        text.contains("cannot apply --cgroup cgroup.freeze=0") && text.contains("check the name of the file"),
        "{text}"
    );
    assert!(host.path("h/a/vm1").exists());
    assert!(undo.run().is_empty());
    assert!(!host.path("h/a").exists());
}

#[test]
fn missing_controllers_and_hierarchies_are_named() {
    let host = scratch::Directory::new();
    fill(&host, "h", &[("cgroup.controllers", "pids")]);
    let parents = [OsStr::new("a")];
    let mut undo = Undo::default();
    let memory = args("--cgroup memory.max=1");
    let v2 = join_v2(&mounts(&host, "cgroup2 cgroup2 rw"), &memory, &parents, &mut undo);
    let text = v2.unwrap_err().describe();
    assert!(
        text.contains("controller memory is not available in cgroup version 2"),
        "{text}"
    );
    let v1 = join_v1(
        &mounts(&host, "cgroup cgroup rw,cpuset"),
        &memory,
        &parents,
        &mut undo,
    );
    let text = v1.unwrap_err().describe();
    assert!(
        text.contains("controller memory is not available in cgroup version 1"),
        "{text}"
    );
    let none = join_v2(&Mounts(String::new()), &memory, &parents, &mut undo);
    let text = none.unwrap_err().describe();
    assert!(text.contains("no file system of cgroup version 2"), "{text}");
    assert_eq!(fs::read_dir(host.path("h")).unwrap().count(), 1);
}

#[test]
fn existing_parent_alone_is_joined() {
    let host = scratch::Directory::new();
    fill(&host, "h", &[("cgroup.procs", "")]);
    fill(&host, "h/a", &[("cgroup.procs", "")]);
    let args = args("--cgroup-version 2");
    let mounts = mounts(&host, "cgroup2 cgroup2 rw");
    let mut undo = Undo::default();
    join_v2(&mounts, &args, &[OsStr::new("missing")], &mut undo).unwrap();
    join_v2(&mounts, &args, &[OsStr::new("a")], &mut undo).unwrap();
    assert_eq!(read(&host, "h/a/cgroup.procs"), "0");
    assert!(!host.path("h/a/vm1").exists());
}
