//! Memory of the running instances: samples, room for wakes, suspend of the instance that is idle longest.

use std::ops::Bound;
use std::time::{Duration, Instant};

use super::core::Core;
use super::procfs::{self, Stat};
use super::registry::{Key, State};

/// Memory of a process beside that of its guest in KiB, with that of the kernel.
const OVERHEAD_KIB: u64 = 1024;
/// Divisor of the host's memory: this part stays available without a limit.
const RESERVED_PART: u64 = 16;
/// Maximum number of processes to sample at once.
const BATCH: usize = 64;
/// Time without processor time after which an instance is idle.
const IDLE: Duration = Duration::from_secs(1);
/// Maximum length of a log in bytes. A longer one begins anew.
const MAX_LOG: u64 = 256 << 10;

/// Memory for a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is memory.
    Free,
    /// Other instances may make room.
    Later,
    /// The wait is over.
    None,
}

impl Core {
    /// Samples processor time and memory of some processes, in turn.
    pub fn sample(&mut self) {
        let start = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let keys: Vec<Key> = self
            .running
            .range((start, Bound::Unbounded))
            .take(BATCH)
            .copied()
            .collect();
        self.cursor = keys.last().copied().filter(|_| keys.len() == BATCH);
        for key in keys {
            let Some(entry) = self.registry.get_mut(key) else {
                continue;
            };
            limit_log(&entry.id);
            let Some(live) = &mut entry.live else { continue };
            let Some(pid) = live.running.as_ref().map(|running| running.pid) else {
                continue;
            };
            if let Some(stat) = Stat::of(pid) {
                // One tick may belong to the timer of an idle guest.
                if stat.cpu_ticks > live.cpu_ticks + 1 {
                    live.active_at = Instant::now();
                }
                live.cpu_ticks = stat.cpu_ticks;
            }
            if let Some(memory) = procfs::memory_kib(pid) {
                live.memory_kib = memory;
            }
        }
    }

    /// Returns the memory of all processes in KiB.
    pub fn used_kib(&self) -> u64 {
        let live = self
            .running
            .iter()
            .filter_map(|key| self.registry.get(*key)?.live.as_ref());
        live.map(|live| live.memory_kib + OVERHEAD_KIB).sum()
    }

    /// Returns the room for the process of a wake. Without room, begins to suspend the instance that is idle longest.
    pub fn room_for(&mut self, key: Key) -> Room {
        let Some(live) = self.registry.get(key).and_then(|entry| entry.live.as_ref()) else {
            return Room::Free;
        };
        let needed = live.memory_kib + OVERHEAD_KIB;
        let is_first = self.running.is_empty();
        let has_room = match self.memory_limit_kib {
            // One instance always runs: no suspend could make room for it.
            Some(limit) => is_first || self.used_kib() + needed <= limit,
            None => {
                is_first
                    || procfs::host_memory_kib().is_none_or(|(total, available)| {
                        available.saturating_sub(needed) >= total / RESERVED_PART
                    })
            }
        };
        if has_room {
            return Room::Free;
        }
        let is_over = live.woken_at.elapsed() > self.timeout;
        self.make_room();
        if is_over { Room::None } else { Room::Later }
    }

    /// Suspends the instance that is idle longest, unless one is being suspended already.
    fn make_room(&mut self) {
        if self.registry.count(State::Suspending) > 0 {
            return;
        }
        let idle = self.running.iter().filter_map(|key| {
            let entry = self
                .registry
                .get(*key)
                .filter(|entry| entry.state == State::Running)?;
            let active_at = entry.live.as_ref()?.active_at;
            (active_at.elapsed() >= IDLE).then_some((active_at, *key))
        });
        if let Some((_, key)) = idle.min() {
            self.counters.suspends_for_memory += 1;
            self.suspend(key);
            self.registry.set_reason(key, "another instance needs its memory");
        }
    }
}

/// Empties the log of the instance `id` if it is long. Its process appends to it.
fn limit_log(id: &str) {
    let path = Core::run_path(id, "log");
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_LOG) {
        // A failure leaves the length as it is.
        let _ = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(0));
    }
}
