//! An instance in a jail of mayfly-jailer.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use scratch::Requirement;
use serde_json::json;

use crate::guests::jailer;
use crate::host::{GUEST, MANY, Supervisor, create_snapshot, enter_namespace, ping, served};

/// User and group of the VMM.
const UNPRIVILEGED: u32 = 65534;

#[test]
fn jailed_instance_is_woken_and_suspended() {
    if !scratch::require(Requirement::Root) || !enter_namespace() {
        return;
    }
    let directory = scratch::Directory::new();
    let base = directory.path("jails");
    let root = base.join("mayfly/web/root");
    let snapshot = root.join("snapshot");
    fs::create_dir_all(&root).unwrap();
    create_snapshot(&snapshot, &[], MANY);
    for path in [&snapshot, &snapshot.join("state"), &snapshot.join("memory")] {
        chown(path, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
    }
    let jailer = jailer().into_os_string().into_string().unwrap();
    let supervisor = Supervisor::start_in(directory, &["--jailer", &jailer]);
    let body = json!({
        "snapshot_path": snapshot,
        "network_interfaces": [{"iface_id": "net0", "host_dev_name": "tap0", "ip": GUEST}],
        "scale_to_zero": {"policy": "off"},
        "jail": {"uid": UNPRIVILEGED, "gid": UNPRIVILEGED, "chroot_base_dir": base},
    });
    supervisor.expect("PUT", "/instances/web", Some(&body));
    ping(GUEST, 2);
    supervisor.await_state("web", "running");
    let pid = supervisor.pid_of("web").unwrap();
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), UNPRIVILEGED);
    assert_eq!(
        fs::metadata(format!("/proc/{pid}/root/.")).unwrap().ino(),
        fs::metadata(&root).unwrap().ino()
    );
    supervisor.suspend("web");
    assert!(root.join("suspended/current/state").exists());
    // It wakes from its own snapshot.
    assert_eq!(served(GUEST).pings, 2);
    let stopped = supervisor.request("DELETE", "/instances/web?kill=true", None);
    assert_eq!(stopped.0, 204, "{}", stopped.1);
}
