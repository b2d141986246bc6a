//! Cgroups of this host. They are no part of a namespace here: each test has a parent of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::fixture::{Host, in_namespaces, proc_file};

/// A parent cgroup of one test. Drop removes it where it exists.
pub struct Parent {
    pub name: String,
    pub hierarchies: Vec<PathBuf>,
}

impl Parent {
    pub fn new(hierarchies: Vec<PathBuf>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("mayfly-test-{}-{count}", std::process::id()),
            hierarchies,
        }
    }

    /// Returns the cgroup of the VM in `hierarchy`.
    pub fn of(&self, hierarchy: &Path, id: &str) -> PathBuf {
        hierarchy.join(&self.name).join(id)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for hierarchy in &self.hierarchies {
            let parent = hierarchy.join(&self.name);
            let Ok(entries) = fs::read_dir(&parent) else {
                continue;
            };
            for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
                // A killed process leaves its cgroup a moment later.
                let path = entry.path();
                scratch::wait_until("the end of the cgroup", || {
                    fs::remove_dir(&path).is_ok() || !path.exists()
                });
            }
            let _ = fs::remove_dir(&parent);
        }
    }
}

/// Returns the mount point of the first file system of `kind` with `option`.
pub fn find_mount(kind: &str, option: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = fields.find(|fields| {
        fields[2] == kind && (option.is_empty() || fields[3].split(',').any(|word| word == option))
    });
    mount.map(|fields| fields[1].into())
}

/// Returns the path of the cgroup of `pid` in the hierarchy whose line in /proc/PID/cgroup contains `controller`.
fn cgroup_of(pid: u32, controller: &str) -> String {
    let text = proc_file(pid, "cgroup");
    let line = text
        .lines()
        .find(|line| line.split(':').nth(1) == Some(controller));
    line.unwrap_or_else(|| panic!("{text}"))
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
fn version_1_sets_values_and_inherits_cpuset() {
    let mounts = ["cpuset", "pids"].map(|controller| find_mount("cgroup", controller));
    let [Some(cpuset), Some(pids)] = mounts else {
        scratch::skip(
            "cgroup v1 with cpuset and pids",
            "boot with systemd.unified_cgroup_hierarchy=0, or mount the hierarchies",
        );
        return;
    };
    in_namespaces(|host| {
        let parent = Parent::new(vec![cpuset.clone(), pids.clone()]);
        let nested = format!("{}/inner", parent.name);
        let inner = Parent {
            name: nested.clone(),
            hierarchies: vec![cpuset.clone(), pids.clone()],
        };
        let options = [
            "--parent-cgroup",
            &nested,
            "--cgroup",
            "cpuset.cpus=0",
            "--cgroup",
            "pids.max=77",
            "--cgroup",
            "cpuset.mem_exclusive=0",
        ];
        let jailed = host.start("vm1", &options);
        let group = inner.of(&cpuset, "vm1");
        assert_eq!(read(&group.join("cpuset.cpus")), "0");
        // Not set, but a process could not join without it.
        assert_eq!(
            read(&group.join("cpuset.mems")),
            read(&cpuset.join("cpuset.mems"))
        );
        let above = read(&cpuset.join(&nested).join("cpuset.cpus"));
        assert_eq!(above, read(&cpuset.join("cpuset.cpus")));
        assert_eq!(read(&inner.of(&pids, "vm1").join("pids.max")), "77");
        for controller in ["cpuset", "pids"] {
            let path = cgroup_of(jailed.pid(), controller);
            assert!(path.ends_with(&format!("{nested}/vm1")), "{path}");
        }
        drop(jailed);
        drop(inner);
    });
}

/// Returns the unified hierarchy.
fn unified() -> Option<PathBuf> {
    let mount = find_mount("cgroup2", "");
    if mount.is_none() {
        scratch::skip("cgroup v2", "mount -t cgroup2 none /sys/fs/cgroup/unified");
    }
    mount
}

#[test]
fn version_2_sets_values() {
    let Some(mount) = unified() else { return };
    in_namespaces(|host| {
        let parent = Parent::new(vec![mount.clone()]);
        let mut options = vec!["--cgroup-version", "2", "--parent-cgroup", &parent.name];
        options.extend(["--cgroup", "cgroup.max.descendants=5"]);
        // A controller that the host has enabled: the test enables none, which would last.
        let enabled = read(&mount.join("cgroup.subtree_control"));
        let has_pids = enabled.split(' ').any(|word| word == "pids");
        if has_pids {
            options.extend(["--cgroup", "pids.max=77"]);
        }
        let jailed = host.start("vm1", &options);
        let group = parent.of(&mount, "vm1");
        assert_eq!(read(&group.join("cgroup.max.descendants")), "5");
        if has_pids {
            assert_eq!(read(&group.join("pids.max")), "77");
        }
        assert_eq!(read(&group.join("cgroup.procs")), jailed.pid().to_string());
        let path = cgroup_of(jailed.pid(), "");
        assert!(path.ends_with(&format!("{}/vm1", parent.name)), "{path}");
        drop(jailed);
    });
}

#[test]
fn existing_parent_of_version_2_is_joined() {
    let Some(mount) = unified() else { return };
    in_namespaces(|host| {
        let parent = Parent::new(vec![mount.clone()]);
        let group = mount.join(&parent.name);
        fs::create_dir(&group).unwrap();
        let options = ["--cgroup-version", "2", "--parent-cgroup", &parent.name];
        let jailed = host.start("vm1", &options);
        assert_eq!(read(&group.join("cgroup.procs")), jailed.pid().to_string());
        let pid = jailed.pid();
        drop(jailed);
        scratch::wait_until("the end of the process", || {
            !read(&group.join("cgroup.procs")).contains(&pid.to_string())
        });
    });
}

#[test]
fn missing_parent_of_version_2_is_reported() {
    let Some(_) = unified() else { return };
    in_namespaces(|host| {
        // More than the kernel allows: a failure after the cgroups.
        let failing = ["--resource-limit", "no-file=99999999999"];
        let options = ["--cgroup-version", "2", "--parent-cgroup", "mayfly-missing"];
        let text = host.fail(&mut host.command("vm1", &[options.as_slice(), &failing].concat()));
        assert!(text.contains("--parent-cgroup has no effect: "), "{text}");
        assert!(text.contains("mayfly-missing does not exist"), "{text}");
    });
}

/// Returns options for a cgroup of this host in `parent`, and its hierarchy.
pub fn options(parent: &str) -> Option<(PathBuf, Vec<String>)> {
    let v1 = find_mount("cgroup", "pids").map(|mount| (mount, "1", "pids.max=77"));
    let v2 = || find_mount("cgroup2", "").map(|mount| (mount, "2", "cgroup.max.depth=3"));
    let (mount, version, setting) = v1.or_else(v2)?;
    let words = [
        "--cgroup-version",
        version,
        "--parent-cgroup",
        parent,
        "--cgroup",
        setting,
    ];
    Some((mount, words.map(str::to_owned).to_vec()))
}

fn expect_failure(host: &Host, options: &[&str], texts: &[&str]) {
    let text = host.fail(&mut host.command("vm1", options));
    for part in texts {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(fs::read_dir(&host.base).unwrap().count(), 0, "{options:?}");
}

#[test]
fn settings_that_kernel_rejects_are_named() {
    let Some(mount) = find_mount("cgroup", "pids") else {
        scratch::skip("cgroup v1 with pids", "mount the hierarchy");
        return;
    };
    in_namespaces(|host| {
        let parent = Parent::new(vec![mount.clone()]);
        let path = parent.of(&mount, "vm1").display().to_string();
        let with = |setting| ["--parent-cgroup", &parent.name, "--cgroup", setting];
        let setting = "cannot apply --cgroup pids.max=many: cannot write ";
        expect_failure(
            host,
            &with("pids.max=many"),
            &[setting, &path, "Invalid argument", "check the value"],
        );
        expect_failure(
            host,
            &with("pids.maximum=1"),
            &[&path, "check the name of the file and --cgroup-version"],
        );
        expect_failure(
            host,
            &with("unicorn.max=1"),
            &["the controller unicorn is not available in cgroup version 1"],
        );
        assert!(!mount.join(&parent.name).exists());
    });
}
