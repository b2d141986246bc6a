//! Processes of an earlier supervisor, which are found again.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use super::core::{Core, RUN, Source};
use super::lifecycle::EXPECTED_KIB;
use super::live::{Found, Live, Running, WakeFrames};
use super::procfs::Stat;
use super::registry::{Entry, Key, State};
use super::sys::{self, Exit};

/// Character before the generation in a record. The name of an interface has none.
const GENERATION: char = '/';

/// Returns the generation of the snapshots in `directory`, which is empty without one.
pub fn generation(directory: &Path) -> Box<str> {
    let current = fs::read_link(directory.join("current"));
    current.map_or_else(|_| "".into(), |name| name.to_string_lossy().into())
}

/// Record of a process: `BOOT /GENERATION TAP ...`, then its line in /proc.
#[derive(Debug, PartialEq, Eq)]
struct Recorded {
    boot: String,
    /// None in a record of an earlier version.
    generation: Option<Box<str>>,
    /// Taps of shared networks.
    taps: Vec<String>,
    /// None if it has not started.
    stat: Option<Stat>,
}

impl Recorded {
    fn parse(record: &str) -> Self {
        let (head, line) = record.split_once('\n').unwrap_or((record, ""));
        let mut recorded = Self {
            boot: String::new(),
            generation: None,
            taps: Vec::new(),
            stat: Stat::parse(line),
        };
        let mut words = head.split(' ');
        recorded.boot = words.next().unwrap_or_default().to_owned();
        for word in words {
            match word.strip_prefix(GENERATION) {
                Some(generation) => recorded.generation = Some(generation.into()),
                None => recorded.taps.push(word.to_owned()),
            }
        }
        recorded
    }
}

impl Core {
    /// Returns the first line of the record of a process that starts now.
    pub fn record(&self, entry: &Entry, suspend_to: &Path) -> String {
        let mut line = format!("{} {GENERATION}{}", self.boot_id, generation(suspend_to));
        for tap in &entry.links.pool {
            line.push(' ');
            line.push_str(&tap.name);
        }
        line.push('\n');
        line
    }

    /// Returns the end of a process whose status is unknown: a suspend has written a generation.
    pub fn unknown_end(&self, entry: &Entry, started: Option<&str>) -> Exit {
        let Ok(config) = entry.parse() else {
            return Exit::Unknown;
        };
        let directory = self.suspend_directory(&entry.id, &config);
        match started {
            // Without a snapshot at a suspend, each wake starts from the same one.
            Some(started) if config.stateful && *started == *generation(&directory) => Exit::Lost,
            _ => Exit::Unknown,
        }
    }

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
            let recorded = Recorded::parse(&fs::read_to_string(&path).unwrap_or_default());
            let Some(key) = self.registry.find(id) else {
                log::warn!("standby: {id} is not registered, and its process is left alone");
                continue;
            };
            match self.open_recorded(&recorded) {
                Some(running) => {
                    let found = Found {
                        generation: recorded.generation,
                    };
                    self.adopt(key, running, found)?;
                    let config = self.registry.get(key).map(Entry::parse);
                    if let Some(Ok(config)) = config {
                        let taps: Vec<_> = recorded.taps.iter().map(String::as_str).collect();
                        self.adopt_taps(key, &config, &taps);
                    }
                }
                None => self.note_missing(key, &recorded, &path),
            }
        }
        Ok(())
    }

    /// Sets the state of an instance whose recorded process does not exist any more.
    fn note_missing(&mut self, key: Key, recorded: &Recorded, path: &Path) {
        let _ = fs::remove_file(path);
        let Some(entry) = self.registry.get(key) else {
            return;
        };
        if entry.state == State::Failed {
            return;
        }
        if recorded.stat.is_none() {
            let reason = "the process of an earlier supervisor has not started";
            self.registry.set(key, State::Suspended, reason);
            return;
        }
        let exit = self.unknown_end(entry, recorded.generation.as_deref());
        self.note_end(key, State::Running, exit, "");
    }

    /// Opens the process of a record, if it is still the same one.
    fn open_recorded(&self, recorded: &Recorded) -> Option<Running> {
        let stat = recorded.stat.as_ref().filter(|_| recorded.boot == self.boot_id)?;
        // Before the comparison: afterwards the number could belong to another process.
        let process = sys::open_process(stat.pid).ok()?;
        let present = Stat::of(stat.pid)?;
        let is_same = present.start == stat.start && !present.is_zombie;
        let running = Running {
            pid: stat.pid,
            process,
        };
        is_same.then_some(running)
    }

    /// Takes over a process of an earlier supervisor, which runs or still loads: it is asked as one that has just started.
    fn adopt(&mut self, key: Key, running: Running, found: Found) -> io::Result<()> {
        self.watch(Source::Process(key), running.process.as_raw_fd())?;
        let deadline = Instant::now() + self.timeout;
        let Some(entry) = self.registry.get_mut(key) else {
            return Ok(());
        };
        let mut live = Live::new(EXPECTED_KIB, WakeFrames::default());
        live.running = Some(running);
        live.found = Some(found);
        live.deadline = Some(deadline);
        entry.live = Some(Box::new(live));
        self.running.insert(key);
        self.ungreeted.insert(key);
        self.counters.found += 1;
        self.registry.set(
            key,
            State::Waking,
            "the process of an earlier supervisor was found",
        );
        self.write_failure(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Recorded, Stat, generation};

    const LINE: &str = "7 (a) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14 15 16 17 18 4711 20 21 22";

    #[test]
    fn records_of_all_versions_are_parsed() {
        let stat = Stat::parse(LINE);
        assert!(stat.is_some());
        for (head, generation, taps) in [
            ("boot /gen-7 t0 t1", Some("gen-7"), vec!["t0", "t1"]),
            ("boot /", Some(""), vec![]),
            // Of a version without generations.
            ("boot t0", None, vec!["t0"]),
            ("boot", None, vec![]),
        ] {
            let recorded = Recorded::parse(&format!("{head}\n{LINE}\n"));
            assert_eq!(recorded.boot, "boot");
            assert_eq!(recorded.generation.as_deref(), generation, "{head}");
            assert_eq!(recorded.taps, taps, "{head}");
            assert_eq!(recorded.stat, stat);
        }
        assert_eq!(Recorded::parse("boot /gen-1\n").stat, None);
        assert_eq!(Recorded::parse("").boot, "");
    }

    #[test]
    fn generation_is_that_of_the_link() {
        let directory = scratch::Directory::new();
        assert_eq!(&*generation(directory.root()), "");
        std::os::unix::fs::symlink("gen-3", directory.path("current")).unwrap();
        assert_eq!(&*generation(directory.root()), "gen-3");
    }
}
