//! Shells: processes that have made their VM before the snapshot is needed.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use super::config::{Config, Limits};
use super::live::Running;

/// A process that waits for its snapshot.
#[derive(Debug)]
pub struct Shell {
    /// Its number, which names its record.
    pub number: u32,
    /// The process.
    pub running: Running,
    /// Connection for the request.
    pub stream: UnixStream,
}

/// Shells by the registered snapshots whose shape they have.
#[derive(Debug)]
pub struct Shells {
    per_shape: usize,
    /// Numbers of instances by snapshot.
    used: BTreeMap<PathBuf, usize>,
    /// Shells that wait.
    pub ready: BTreeMap<PathBuf, VecDeque<Shell>>,
    /// Number of the next shell.
    pub next: u32,
    /// Time of the next start.
    pub not_before: Instant,
}

impl Shells {
    /// Keeps `per_shape` shells for each shape.
    pub fn new(per_shape: u32) -> Self {
        Self {
            per_shape: per_shape as usize,
            used: BTreeMap::new(),
            ready: BTreeMap::new(),
            next: 1,
            not_before: Instant::now(),
        }
    }

    /// Returns true if shells are kept.
    pub fn is_used(&self) -> bool {
        self.per_shape > 0
    }

    /// Notes an instance that can wake in a shell.
    pub fn add(&mut self, config: &Config) {
        if self.is_used() && is_possible(config) {
            *self.used.entry(config.snapshot.clone()).or_default() += 1;
        }
    }

    /// Notes the end of an instance. Returns the shells of its snapshot if it was the last one: they are used no more.
    #[must_use]
    pub fn remove(&mut self, config: &Config) -> VecDeque<Shell> {
        let used = self.used.get_mut(&config.snapshot);
        let Some(count) = used.filter(|_| is_possible(config)) else {
            return VecDeque::new();
        };
        *count -= 1;
        if *count > 0 {
            return VecDeque::new();
        }
        self.used.remove(&config.snapshot);
        self.ready.remove(&config.snapshot).unwrap_or_default()
    }

    /// Returns the number of shells that wait.
    pub fn count(&self) -> usize {
        self.ready.values().map(VecDeque::len).sum()
    }

    /// Returns true if a shell is missing.
    pub fn is_missing(&self) -> bool {
        self.missing().is_some()
    }

    /// Returns a snapshot with too few shells.
    pub fn missing(&self) -> Option<&PathBuf> {
        let is_missing = |path: &&PathBuf| self.ready.get(*path).map_or(0, VecDeque::len) < self.per_shape;
        self.used.keys().find(is_missing)
    }
}

/// Returns true if the instance can wake in a shell: shells have neither its jail nor its cgroup.
pub fn is_possible(config: &Config) -> bool {
    config.shell && config.jail.is_none() && config.limits == Limits::default()
}
