//! A supervisor of fake programs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::chown;

use crate::fake;
pub use crate::supervisor::Supervisor;

/// Snapshot of a VM without devices. Only its description is read: the fake program loads nothing.
const STATE: &[u8] = include_bytes!("plain.state");

impl Supervisor {
    /// Starts a supervisor with `options`.
    pub fn start(options: &[&str]) -> Self {
        Self::start_with(STATE, options)
    }

    /// Starts a supervisor with a snapshot of the state file `state`.
    pub fn start_with(state: &[u8], options: &[&str]) -> Self {
        let directory = scratch::Directory::new();
        fs::create_dir(directory.path("snapshot")).unwrap();
        directory.write("snapshot/state", state);
        directory.write("snapshot/memory", "");
        let program = fake::install(&directory);
        let options = [options, &["--mayfly", &program]].concat();
        Self::launch(env!("CARGO_BIN_EXE_mayfly-standby").into(), directory, &options)
    }

    /// Restarts the supervisor as another user, which only root can.
    pub fn restart_as(&mut self, user: u32) {
        self.kill();
        // Only its owner may connect to it, and find that it has no listener.
        let _ = fs::remove_file(self.directory.path("sock"));
        let root = self.directory.root();
        let names = ["", "log", "mayfly", "snapshot", "state"].map(|name| root.join(name));
        let deeper = ["run", "suspended", "journal", "lock"].map(|name| root.join("state").join(name));
        let rest = fs::read_dir(root.join("snapshot"))
            .unwrap()
            .map(|file| file.unwrap().path());
        for path in names.into_iter().chain(deeper).chain(rest) {
            chown(path, Some(user), Some(user)).unwrap();
        }
        self.set_user(user);
        self.restart();
    }

    /// Sets the behavior of the processes that start from now on.
    pub fn set_behavior(&self, behavior: &str) {
        self.directory.write("snapshot/behavior", behavior);
    }

    /// Returns the lines of the processes that have started.
    pub fn starts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.path("snapshot/starts")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Returns the process ID of the last process of the instance, if it exists.
    fn alive(&self, id: &str) -> Option<i32> {
        let starts = self.starts();
        let line = starts.iter().rfind(|line| line.split(' ').next() == Some(id))?;
        let pid = line.split(' ').nth(1)?;
        // That of a process that has ended is empty.
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        line.contains("fake::program").then(|| pid.parse().ok())?
    }

    /// Returns true if a process of the instance exists.
    pub fn is_alive(&self, id: &str) -> bool {
        self.alive(id).is_some()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill();
        // Its processes go on without it.
        let ids: BTreeSet<String> = self
            .starts()
            .iter()
            .filter_map(|line| Some(line.split(' ').next()?.to_owned()))
            .collect();
        for pid in ids.iter().filter_map(|id| self.alive(id)) {
            // SAFETY: the call takes no pointer, and the process is one of this test.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}
