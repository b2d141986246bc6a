//! Reports of the kernel about processes and memory, from `/proc`.

use std::fs;
use std::io;

/// Size of a page in KiB.
const PAGE_KIB: u64 = 4;

/// Line of a process in `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Process ID.
    pub pid: libc::pid_t,
    /// Processor time in ticks of 10 ms (`USER_HZ`).
    pub cpu_ticks: u64,
    /// Start of the process in ticks since the boot of the host.
    pub start: u64,
    /// The process has ended, and its parent has not read its status.
    pub is_zombie: bool,
    /// Status in the format of wait(2), once the process has ended.
    pub status: Option<i32>,
}

impl Stat {
    /// Parses a line. The name of the program may contain spaces and parentheses.
    pub fn parse(line: &str) -> Option<Self> {
        let (pid, rest) = line.split_once(" (")?;
        let (_, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // proc(5): the first of `fields` is number 3, the state.
        let number = |index: usize| -> Option<u64> { fields.get(index - 3)?.parse().ok() };
        Some(Self {
            pid: pid.parse().ok()?,
            cpu_ticks: number(14)?.checked_add(number(15)?)?,
            start: number(22)?,
            is_zombie: *fields.first()? == "Z",
            // Number 52, the last one.
            status: fields.get(52 - 3).and_then(|status| status.parse().ok()),
        })
    }

    /// Reads the line of the process `pid`.
    pub fn of(pid: libc::pid_t) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

/// Returns the memory of the process `pid` in KiB, without pages of files: those of its snapshot are shared.
pub fn memory_kib(pid: libc::pid_t) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = text.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(shared) * PAGE_KIB)
}

/// Returns the memory of the host and its available part in KiB.
pub fn host_memory_kib() -> Option<(u64, u64)> {
    parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_meminfo(text: &str) -> Option<(u64, u64)> {
    let value = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.strip_suffix("kB")?.trim().parse().ok()
    };
    Some((value("MemTotal:")?, value("MemAvailable:")?))
}

/// Returns the identifier of this boot of the host.
///
/// # Errors
/// Fails without /proc.
pub fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Stat, boot_id, host_memory_kib, memory_kib, parse_meminfo};

    #[test]
    fn stat_of_any_name_is_parsed() {
        let line = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14 15 16 17 18 4711 20 21 22\n";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            (stat.pid, stat.cpu_ticks, stat.start, stat.is_zombie),
            (7, 42, 4711, false)
        );
        assert!(Stat::parse(&line.replace(" S ", " Z ")).unwrap().is_zombie);
        for length in 0..line.find("4711").unwrap() {
            assert_eq!(Stat::parse(&line[..length]), None, "{length}");
        }
    }

    #[test]
    fn this_process_has_memory_and_a_start() {
        let pid = libc::pid_t::try_from(std::process::id()).unwrap();
        let stat = Stat::of(pid).unwrap();
        assert_eq!(stat.pid, pid);
        assert!(stat.start > 0 && memory_kib(pid).unwrap() > 100);
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    #[test]
    fn memory_of_the_host_is_parsed() {
        let text = "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:    4000 kB\n";
        assert_eq!(parse_meminfo(text), Some((16000, 4000)));
        assert_eq!(parse_meminfo("MemTotal: x kB\n"), None);
        let (total, available) = host_memory_kib().unwrap();
        assert!(available <= total);
    }
}
