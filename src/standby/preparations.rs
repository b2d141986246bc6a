//! Preparation of the files of starts. The directory of a registration or of a jail may be on a file system that never responds: a thread
//! accesses it.

use std::path::PathBuf;

use super::config::Config;
use super::core::Core;
use super::metrics::Failure;
use super::preparation::{Files, Preparation, Prepared};
use super::registry::Key;

impl Core {
    /// Returns the files of a start of the instance `id`.
    pub fn files(&self, id: &str, config: &Config) -> Files {
        Files {
            directory: self.suspend_directory(id, config),
            socket: self.socket(id, config),
            owner: config.jail.as_ref().map(|jail| (jail.uid, jail.gid)),
        }
    }

    /// Returns the files of a start, and prepares them unless a thread has done it.
    ///
    /// # Errors
    /// The cause, for example a full disk.
    pub fn prepare_files(&self, key: Key, config: &Config) -> Result<(PathBuf, Prepared), (Failure, String)> {
        let Some(entry) = self.registry.get(key) else {
            return Err((Failure::Load, "the instance is deleted".into()));
        };
        let files = self.files(&entry.id, config);
        let prepared = match entry.live.as_ref().map(|live| &live.preparation) {
            Some(Preparation::Done(prepared)) => prepared.clone(),
            _ => files.prepare().map_err(|reason| (Failure::Start, reason))?,
        };
        Ok((files.directory, prepared))
    }

    /// Begins a wake: adds it to the queue, once its files are prepared if a thread must do it.
    pub fn begin_wake(&mut self, key: Key) {
        if self.registry.get(key).is_some_and(|entry| entry.has_directory) {
            self.begin_preparation(key);
        } else {
            self.queue.push(key);
        }
    }

    /// Begins to access the directory of an instance on a thread.
    pub fn begin_preparation(&mut self, key: Key) {
        let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut()) else {
            return;
        };
        live.preparation = Preparation::Waiting;
        self.preparing.insert(key);
        self.repeat_preparation(key);
    }

    /// Begins a preparation that waits, for a thread or after a failure.
    fn repeat_preparation(&mut self, key: Key) {
        let unresponsive = self.unresponsive.get(&key);
        if unresponsive.is_some_and(|inspection| !inspection.has_ended()) {
            let reason =
                "waits for the file system of its directory, which has not responded to an earlier wake";
            return self.registry.set_reason(key, reason);
        }
        self.unresponsive.remove(&key);
        let Some(entry) = self.registry.get(key) else {
            return;
        };
        let begun = entry.parse().and_then(|config| {
            let files = self.files(&entry.id, &config);
            self.preparer.begin(self.timeout, move || files.prepare())
        });
        match begun {
            Ok(inspection) => {
                if let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut()) {
                    live.preparation = Preparation::Begun(inspection);
                }
            }
            Err(reason) => self.registry.set_reason(key, &reason),
        }
    }

    /// Continues the wakes whose files are prepared, and ends of processes whose generation is known.
    pub fn finish_preparations(&mut self) {
        for key in self.preparing.iter().copied().collect::<Vec<_>>() {
            self.finish_preparation(key);
        }
        self.start_waiting();
    }

    /// Finishes all preparations that have ended, and begins those that wait.
    pub fn repeat_preparations(&mut self) {
        self.finish_preparations();
        self.unresponsive.retain(|_, inspection| !inspection.has_ended());
        for key in self.preparing.iter().copied().collect::<Vec<_>>() {
            let live = self.registry.get(key).and_then(|entry| entry.live.as_ref());
            if live.is_some_and(|live| matches!(live.preparation, Preparation::Waiting)) {
                self.repeat_preparation(key);
            }
        }
    }

    fn finish_preparation(&mut self, key: Key) {
        let entry = self.registry.get_mut(key);
        let Some(live) = entry.and_then(|entry| entry.live.as_mut()) else {
            self.preparing.remove(&key);
            return;
        };
        let is_over = live.woken_at.elapsed() > self.timeout;
        let result = match &live.preparation {
            Preparation::Begun(inspection) => self.preparer.result(inspection),
            Preparation::Waiting => None,
            Preparation::None | Preparation::Done(_) | Preparation::Unknown => {
                self.preparing.remove(&key);
                return;
            }
        };
        match result {
            Some(Ok(Ok(prepared))) => {
                live.preparation = Preparation::Done(prepared);
                self.continue_prepared(key);
            }
            // The next tick repeats it.
            Some(Ok(Err(reason))) => {
                live.preparation = Preparation::Waiting;
                self.registry.set_reason(key, &reason);
            }
            Some(Err(cause)) => {
                let last = std::mem::replace(&mut live.preparation, Preparation::Unknown);
                if let Preparation::Begun(inspection) = last {
                    self.unresponsive.insert(key, inspection);
                }
                self.give_up_preparation(
                    key,
                    Failure::Timeout,
                    &format!("cannot access its directory: {cause}"),
                );
            }
            None if is_over && matches!(live.preparation, Preparation::Waiting) => {
                live.preparation = Preparation::Unknown;
                let reason = self.registry.get(key).map(|entry| entry.reason.clone());
                self.give_up_preparation(key, Failure::Start, &reason.unwrap_or_default());
            }
            None => {}
        }
    }

    fn continue_prepared(&mut self, key: Key) {
        self.preparing.remove(&key);
        if self.is_ending(key) {
            self.finish_process(key);
        } else {
            self.queue.push(key);
        }
    }

    fn give_up_preparation(&mut self, key: Key, failure: Failure, reason: &str) {
        self.preparing.remove(&key);
        if self.is_ending(key) {
            self.finish_process(key);
        } else {
            self.give_up(key, failure, reason);
        }
    }

    /// Returns true if the process of an earlier supervisor has ended, and its generation is read.
    pub fn is_ending(&self, key: Key) -> bool {
        let live = self.registry.get(key).and_then(|entry| entry.live.as_ref());
        live.is_some_and(|live| live.found.is_some() && !matches!(live.preparation, Preparation::None))
    }
}
