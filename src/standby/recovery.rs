//! Processes of an earlier supervisor, which are found again.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use super::core::{Core, RUN, Source};
use super::lifecycle::EXPECTED_KIB;
use super::live::{Live, Running};
use super::procfs::Stat;
use super::registry::{Entry, Key, State};
use super::sys;

impl Core {
    /// Finds the processes of an earlier supervisor, whose files are in the run directory.
    ///
    /// # Errors
    /// Fails if the directory cannot be read.
    pub fn find_running(&mut self) -> io::Result<()> {
        for file in fs::read_dir(RUN)? {
            let path = file?.path();
            let is_record = path.extension().is_some_and(|extension| extension == "pid");
            let id = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .filter(|_| is_record);
            let Some(id) = id else { continue };
            let found = fs::read_to_string(&path)
                .ok()
                .and_then(|text| self.open_recorded(&text));
            let Some(key) = self.registry.find(id) else {
                log::warn!("standby: {id} is not registered, and its process is left alone");
                continue;
            };
            match found {
                Some((running, taps)) => {
                    self.adopt(key, running)?;
                    let config = self.registry.get(key).map(Entry::parse);
                    if let Some(Ok(config)) = config {
                        let taps: Vec<_> = taps.iter().map(String::as_str).collect();
                        self.adopt_taps(key, &config, &taps);
                    }
                }
                None => {
                    let _ = fs::remove_file(&path);
                    let reason = "the process has ended without a supervisor";
                    let failed = self
                        .registry
                        .get(key)
                        .is_some_and(|entry| entry.state == State::Failed);
                    if !failed {
                        self.registry.set(key, State::Suspended, reason);
                    }
                }
            }
        }
        Ok(())
    }

    /// Opens the process of a record, if it is still the same one. Returns the names of its taps of shared networks, too.
    fn open_recorded(&self, record: &str) -> Option<(Running, Vec<String>)> {
        let (head, line) = record.split_once('\n')?;
        let mut head = head.split(' ').map(str::to_owned);
        let boot = head.next()?;
        let recorded = Stat::parse(line).filter(|_| boot == self.boot_id)?;
        // Before the comparison: afterwards the number could belong to another process.
        let process = sys::open_process(recorded.pid).ok()?;
        let present = Stat::of(recorded.pid)?;
        let is_same = present.start == recorded.start && !present.is_zombie;
        let running = Running {
            pid: recorded.pid,
            process,
        };
        is_same.then(|| (running, head.collect()))
    }

    /// Takes over a process of an earlier supervisor.
    fn adopt(&mut self, key: Key, running: Running) -> io::Result<()> {
        self.watch(Source::Process(key), running.process.as_raw_fd())?;
        let Some(entry) = self.registry.get_mut(key) else {
            return Ok(());
        };
        let mut live = Live::new(EXPECTED_KIB, None);
        live.running = Some(running);
        entry.live = Some(Box::new(live));
        self.running.insert(key);
        self.counters.found += 1;
        self.registry.set(
            key,
            State::Running,
            "the process of an earlier supervisor was found",
        );
        self.write_failure(key);
        Ok(())
    }
}
