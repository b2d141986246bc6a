//! Processes of an earlier supervisor, which are found again.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use super::core::{Core, RUN, Source};
use super::lifecycle::EXPECTED_KIB;
use super::live::{Found, Live, Running, WakeFrames};
use super::preparation::{Preparation, Prepared};
use super::procfs::Stat;
use super::registry::{Entry, Key, State};
use super::sys::{self, Exit};

/// Character before the generation in a record. The name of an interface has none.
const GENERATION: char = '/';

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
    pub fn record(&self, entry: &Entry, prepared: &Prepared) -> String {
        let mut line = format!("{} {GENERATION}{}", self.boot_id, prepared.generation);
        for tap in &entry.links.pool {
            line.push(' ');
            line.push_str(&tap.name);
        }
        line.push('\n');
        line
    }

    /// Returns the end of a process of an earlier supervisor whose status is unknown: a suspend has written a generation. Returns nothing
    /// while a thread reads it, and [`finish_process`](Self::finish_process) is called again afterwards.
    pub fn unknown_end(&mut self, key: Key) -> Option<Exit> {
        let entry = self.registry.get(key)?;
        let live = entry.live.as_ref()?;
        let Ok(config) = entry.parse() else {
            return Some(Exit::Unknown);
        };
        let started = live.found.as_ref().and_then(|found| found.generation.as_deref());
        // Without a snapshot at a suspend, each wake starts from the same one.
        let Some(started) = started.filter(|_| config.stateful) else {
            return Some(Exit::Unknown);
        };
        let present = match &live.preparation {
            Preparation::None if entry.has_directory => {
                self.begin_ending(key);
                return None;
            }
            Preparation::Waiting | Preparation::Begun(_) => return None,
            Preparation::Unknown => return Some(Exit::Unknown),
            Preparation::None => self.files(&entry.id, &config).read().generation,
            Preparation::Done(prepared) => prepared.generation.clone(),
        };
        Some(if *started == *present {
            Exit::Lost
        } else {
            Exit::Unknown
        })
    }

    /// Begins to read the generation of a process that has ended. The instance stays in its state.
    fn begin_ending(&mut self, key: Key) {
        let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut()) else {
            return;
        };
        // It does not respond any more.
        (live.deadline, live.exchange) = (None, None);
        live.woken_at = Instant::now();
        let descriptor = live.running.as_ref().map(|running| running.process.as_raw_fd());
        self.ungreeted.remove(&key);
        // Its descriptor stays readable.
        descriptor
            .into_iter()
            .for_each(|descriptor| self.unwatch(descriptor));
        self.begin_preparation(key);
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
        let reason = "the process of an earlier supervisor has ended; the generation of its snapshot is read";
        self.registry.set(key, State::Waking, reason);
        if let Some(entry) = self.registry.get_mut(key) {
            let mut live = Live::new(EXPECTED_KIB, WakeFrames::default());
            live.found = Some(Found {
                generation: recorded.generation.clone(),
            });
            entry.live = Some(Box::new(live));
        }
        // Else its end follows the read.
        if let Some(exit) = self.unknown_end(key) {
            if let Some(entry) = self.registry.get_mut(key) {
                entry.live = None;
            }
            self.note_end(key, State::Running, exit, "");
        }
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
    use super::{Recorded, Stat};

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
}
