//! The journal: registrations and failures, as lines of JSON with a checksum, appended to one file.
//!
//! ```text
//! 5f0c3a11 {"config":{"snapshot_path":"/s"},"id":"web","set":"instance"}
//! ```
//! A line is in the page cache before its request has a response, so that it survives the end of the process. The thread of the
//! journal writes it to the disk within a second, and replaces the file by a compact one once most of its lines are out of date.
//!
//! An incomplete last line belongs to a process that was killed: its request had no response. The next start removes it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use serde_json::{Value, json};
use vmm_sys_util::eventfd::EventFd;

/// Name of the journal in the state directory.
const NAME: &str = "journal";
/// Name of the compact journal while it is written.
const NEW: &str = "journal.new";

/// Minimum size in bytes above which a journal is compacted.
const MIN_COMPACTED: u64 = 1 << 20;

/// Subject of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Registration of a network.
    Network,
    /// Registration of an instance.
    Instance,
    /// Reason of a failed instance, and origin of its next wake.
    Failure,
}

impl Subject {
    const ALL: [Self; 3] = [Self::Network, Self::Instance, Self::Failure];

    fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Instance => "instance",
            Self::Failure => "failure",
        }
    }
}

/// Change of one subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The subject.
    pub subject: Subject,
    /// Its identifier.
    pub id: String,
    /// Its new value; none after its removal.
    pub value: Option<Value>,
}

impl Record {
    /// Returns the line of the record.
    fn line(&self) -> Vec<u8> {
        let key = if self.value.is_some() { "set" } else { "remove" };
        let mut object = json!({ key: self.subject.name(), "id": self.id });
        if let Some(value) = &self.value {
            object["config"] = value.clone();
        }
        let text = object.to_string();
        format!("{:08x} {text}\n", checksum(text.as_bytes())).into_bytes()
    }

    /// Parses a line without its line feed.
    fn parse(line: &[u8]) -> Option<Self> {
        let (sum, text) = (line.get(..8)?, line.get(9..)?);
        let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
        if line[8] != b' ' || sum != checksum(text) {
            return None;
        }
        let mut object: Value = serde_json::from_slice(text).ok()?;
        let name = object.get("set").or(object.get("remove"))?.as_str()?;
        let subject = Subject::ALL.into_iter().find(|subject| subject.name() == name)?;
        let value = object.get("set").is_some().then(|| object["config"].take());
        let id = object.get("id")?.as_str()?.to_owned();
        Some(Self { subject, id, value })
    }
}

/// CRC-32 of IEEE 802.3, reflected.
fn checksum(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (sum >> 8) ^ TABLE[usize::from(sum.to_le_bytes()[0] ^ byte)]
    })
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut sum: u32 = 0;
    while sum < 256 {
        let (mut value, mut bit) = (sum, 0);
        while bit < 8 {
            value = (value >> 1) ^ (0xedb8_8320 & (value & 1).wrapping_neg());
            bit += 1;
        }
        table[sum as usize] = value;
        sum += 1;
    }
    table
}

/// Failure of the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation} the journal {}", path.display())]
    System {
        /// Failed operation.
        operation: &'static str,
        /// Path of the journal.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A line before the last one has been changed.
    #[error(
        "cannot use the journal {}: line {line} is damaged; remove the line to go on without it", path.display()
    )]
    Damaged {
        /// Path of the journal.
        path: PathBuf,
        /// Number of the line.
        line: usize,
    },
}

/// Work of the thread.
enum Work {
    /// Write the file to the disk.
    Sync(File),
    /// Write a compact copy of the first bytes of the file.
    Compact(PathBuf, u64),
}

/// The journal of a state directory.
pub struct Journal {
    directory: PathBuf,
    file: File,
    /// Length of the file in bytes.
    length: u64,
    /// Length in bytes after the last compaction.
    compact_length: u64,
    /// Lines have been appended since the last [`sync`](Self::sync).
    is_dirty: bool,
    /// End of the copied part, while the thread compacts.
    compacting: Option<u64>,
    thread: Sender<Work>,
    compacted: Receiver<io::Result<File>>,
    /// Signalled at the end of a compaction.
    done: EventFd,
}

impl Journal {
    /// Opens the journal in `directory`, and calls `record` for each of its records.
    ///
    /// # Errors
    /// [`Error`]
    pub fn open(directory: &Path, mut record: impl FnMut(Record)) -> Result<Self, Error> {
        let path = directory.join(NAME);
        let failed = |operation| {
            let path = path.clone();
            move |source| Error::System {
                operation,
                path,
                source,
            }
        };
        // A killed compaction has left it.
        let _ = fs::remove_file(directory.join(NEW));
        let file = open(&path, false).map_err(failed("open"))?;
        let size = file.metadata().map_err(failed("inspect"))?.len();
        let mut lines = Lines::new(&file);
        while let Some(read) = lines.next().map_err(failed("read"))? {
            record(read);
        }
        let length = lines.end;
        if lines.damaged && lines.has_more().map_err(failed("read"))? {
            return Err(Error::Damaged {
                line: lines.count + 1,
                path,
            });
        }
        if length < size {
            log::warn!("standby: the journal ended in an incomplete line, which is removed");
            file.set_len(length).map_err(failed("truncate"))?;
        }
        let done = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(failed("watch"))?;
        let (thread, work) = mpsc::channel();
        let (results, compacted) = mpsc::channel();
        let signal = done.try_clone().map_err(failed("watch"))?;
        let started = thread::Builder::new()
            .name("journal".into())
            .spawn(move || work_off(&work, &results, &signal));
        started.map_err(failed("start a thread for"))?;
        Ok(Self {
            directory: directory.to_owned(),
            file,
            length,
            compact_length: length,
            is_dirty: false,
            compacting: None,
            thread,
            compacted,
            done,
        })
    }

    /// Appends `record`.
    ///
    /// # Errors
    /// [`Error::System`], for example on a full disk; the journal is unchanged then.
    pub fn append(&mut self, record: &Record) -> Result<(), Error> {
        let line = record.line();
        if let Err(source) = self.file.write_all_at(&line, self.length) {
            // The next line overwrites a part of this one; without this call a restart removes it.
            let _ = self.file.set_len(self.length);
            return Err(Error::System {
                operation: "append to",
                path: self.directory.join(NAME),
                source,
            });
        }
        self.length += line.len() as u64;
        self.is_dirty = true;
        self.compact_if_due();
        Ok(())
    }

    fn compact_if_due(&mut self) {
        if self.compacting.is_none() && self.length > MIN_COMPACTED.max(3 * self.compact_length) {
            self.compacting = Some(self.length);
            // Fails only without the thread, which ends with this structure.
            let _ = self
                .thread
                .send(Work::Compact(self.directory.clone(), self.length));
        }
    }

    /// Begins to write the appended lines to the disk. Returns false if there are none.
    pub fn sync(&mut self) -> bool {
        if !std::mem::take(&mut self.is_dirty) {
            return false;
        }
        if let Ok(file) = self.file.try_clone() {
            let _ = self.thread.send(Work::Sync(file));
        }
        true
    }

    /// Returns true if lines have been appended since the last [`sync`](Self::sync).
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Returns the eventfd of the compaction, for [`finish_compaction`](Self::finish_compaction).
    pub fn done(&self) -> &EventFd {
        &self.done
    }

    /// Replaces the file by the compact one, after the thread has written it. Keeps the old one if that fails.
    pub fn finish_compaction(&mut self) {
        let _ = self.done.read();
        let Some((end, result)) = self.compacting.zip(self.compacted.try_recv().ok()) else {
            return;
        };
        self.compacting = None;
        if let Err(error) = result.and_then(|new| self.replace(new, end)) {
            log::warn!("standby: cannot compact the journal, which keeps its length: {error}");
            // Not at each following line.
            self.compact_length = self.length;
        }
    }

    /// Appends the lines after `end` to `new`, which becomes the journal.
    fn replace(&mut self, new: File, end: u64) -> io::Result<()> {
        let mut rest = vec![0; usize::try_from(self.length - end).unwrap_or(0)];
        self.file.read_exact_at(&mut rest, end)?;
        let length = new.metadata()?.len();
        new.write_all_at(&rest, length)?;
        fs::rename(self.directory.join(NEW), self.directory.join(NAME))?;
        self.file = new;
        self.length = length + rest.len() as u64;
        self.compact_length = self.length;
        self.is_dirty = true;
        Ok(())
    }
}

fn open(path: &Path, truncate: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(truncate)
        .mode(0o600);
    options.open(path)
}

/// Complete lines of a journal.
struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    /// End of the last valid line in bytes.
    end: u64,
    /// Number of valid lines.
    count: usize,
    /// The line after them is damaged or incomplete.
    damaged: bool,
}

impl<R: Read> Lines<R> {
    fn new(reader: R) -> Self {
        Self {
            reader: BufReader::with_capacity(1 << 18, reader),
            line: Vec::new(),
            end: 0,
            count: 0,
            damaged: false,
        }
    }

    fn next(&mut self) -> io::Result<Option<Record>> {
        self.line.clear();
        let length = self.reader.read_until(b'\n', &mut self.line)?;
        let record = self.line.strip_suffix(b"\n").and_then(Record::parse);
        match &record {
            Some(_) => {
                self.end += length as u64;
                self.count += 1;
            }
            None => self.damaged = length > 0,
        }
        Ok(record)
    }

    /// Returns true if the damaged line has a line feed, or another line follows it: the end of a process leaves neither.
    fn has_more(&mut self) -> io::Result<bool> {
        Ok(self.line.ends_with(b"\n") || !self.reader.fill_buf()?.is_empty())
    }
}

/// Executes the work of the thread until the journal is dropped.
#[allow(
    clippy::disallowed_methods,
    reason = "the thread ends with the journal, which closes the channel"
)]
fn work_off(work: &Receiver<Work>, results: &Sender<io::Result<File>>, signal: &EventFd) {
    while let Ok(work) = work.recv() {
        match work {
            Work::Sync(file) => {
                if let Err(error) = file.sync_data() {
                    log::error!("standby: cannot write the journal to the disk: {error}");
                }
            }
            Work::Compact(directory, end) => {
                if results.send(compact(&directory, end)).is_err() {
                    return;
                }
                let _ = signal.write(1);
            }
        }
    }
}

/// Writes the last record of each subject in the first `end` bytes of the journal to a new file.
fn compact(directory: &Path, end: u64) -> io::Result<File> {
    let mut old = File::open(directory.join(NAME))?;
    let mut kept = BTreeMap::new();
    let mut lines = Lines::new((&mut old).take(end));
    loop {
        let start = lines.end;
        let Some(record) = lines.next()? else { break };
        let key = (record.subject, record.id);
        match record.value {
            Some(_) => kept.insert(key, start..lines.end),
            None => kept.remove(&key),
        };
    }
    let new = open(&directory.join(NEW), true)?;
    let mut writer = BufWriter::with_capacity(1 << 18, &new);
    let mut ranges: Vec<_> = kept.into_values().collect();
    // In the order of the file, which is read once.
    ranges.sort_unstable_by_key(|range| range.start);
    let mut reader = BufReader::with_capacity(1 << 18, &mut old);
    let mut place = 0;
    reader.seek(SeekFrom::Start(0))?;
    let mut line = Vec::new();
    for range in ranges {
        let skipped = i64::try_from(range.start - place).unwrap_or(i64::MAX);
        reader.seek_relative(skipped)?;
        line.resize(usize::try_from(range.end - range.start).unwrap_or(0), 0);
        reader.read_exact(&mut line)?;
        writer.write_all(&line)?;
        place = range.end;
    }
    writer.flush()?;
    drop(writer);
    new.sync_data()?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::{AsRawFd, BorrowedFd};

    use serde_json::json;

    use super::{Error, Journal, NAME, Record, Subject, checksum};

    fn set(id: &str, value: u32) -> Record {
        Record {
            subject: Subject::Instance,
            id: id.into(),
            value: Some(json!({ "value": value })),
        }
    }

    fn open(directory: &scratch::Directory) -> Result<(Journal, Vec<Record>), Error> {
        let mut records = Vec::new();
        let journal = Journal::open(directory.root(), |record| records.push(record))?;
        Ok((journal, records))
    }

    #[test]
    fn checksum_is_that_of_ethernet() {
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn records_survive() {
        let directory = scratch::Directory::new();
        let (mut journal, records) = open(&directory).unwrap();
        assert!(records.is_empty());
        let removed = Record {
            value: None,
            ..set("a", 0)
        };
        let written = [set("a", 1), set("b\n\"", 2), removed];
        for record in &written {
            journal.append(record).unwrap();
        }
        assert!(journal.sync() && !journal.sync());
        drop(journal);
        assert_eq!(open(&directory).unwrap().1, written);
    }

    #[test]
    fn any_prefix_has_the_records_of_its_complete_lines() {
        let directory = scratch::Directory::new();
        let (mut journal, _) = open(&directory).unwrap();
        let written = [set("a", 1), set("b", 2), set("c", 3)];
        for record in &written {
            journal.append(record).unwrap();
        }
        drop(journal);
        let text = fs::read(directory.path(NAME)).unwrap();
        for length in 0..text.len() {
            fs::write(directory.path(NAME), &text[..length]).unwrap();
            let lines = text[..length].iter().filter(|byte| **byte == b'\n').count();
            let (mut journal, records) = open(&directory).unwrap();
            assert_eq!(records, written[..lines], "{length} bytes");
            journal.append(&set("d", 4)).unwrap();
            drop(journal);
            let (_, records) = open(&directory).unwrap();
            assert_eq!(records.len(), lines + 1);
            assert_eq!(records[lines], set("d", 4));
        }
    }

    #[test]
    fn damaged_line_is_named() {
        let directory = scratch::Directory::new();
        let (mut journal, _) = open(&directory).unwrap();
        for number in 0..3 {
            journal.append(&set("a", number)).unwrap();
        }
        drop(journal);
        let text = fs::read_to_string(directory.path(NAME)).unwrap();
        for line in 1..=3 {
            let damaged = text.replace(&format!("\"value\":{}", line - 1), "\"value\":7");
            fs::write(directory.path(NAME), damaged).unwrap();
            match open(&directory) {
                Err(Error::Damaged { line: found, .. }) => assert_eq!(found, line),
                other => panic!("line {line}: {:?}", other.map(|(_, records)| records)),
            }
        }
    }

    #[test]
    fn long_journal_is_compacted_while_lines_are_appended() {
        let directory = scratch::Directory::new();
        let (mut journal, _) = open(&directory).unwrap();
        let mut number = 0;
        while journal.compacting.is_none() {
            journal.append(&set(&format!("{}", number % 10), number)).unwrap();
            number += 1;
        }
        let before = journal.length;
        // After the copied part.
        journal.append(&set("0", 7)).unwrap();
        journal
            .append(&Record {
                value: None,
                ..set("1", 0)
            })
            .unwrap();
        // SAFETY: the journal owns the eventfd until the end of the test.
        let done = unsafe { BorrowedFd::borrow_raw(journal.done.as_raw_fd()) };
        scratch::await_readable(done).unwrap();
        journal.finish_compaction();
        assert!(journal.compacting.is_none() && journal.length < 2000 && before > 1 << 20);
        journal.append(&set("2", 8)).unwrap();
        drop(journal);
        let (_, records) = open(&directory).unwrap();
        let mut values = std::collections::BTreeMap::new();
        for record in records {
            match record.value {
                Some(value) => values.insert(record.id, value),
                None => values.remove(&record.id),
            };
        }
        assert_eq!(values.len(), 9);
        assert_eq!(
            (&values["0"], &values["2"]),
            (&json!({"value": 7}), &json!({"value": 8}))
        );
        assert!(!directory.path("journal.new").exists());
    }

    #[test]
    fn full_disk_leaves_the_journal_unchanged() {
        let directory = scratch::Directory::new();
        let (mut journal, _) = open(&directory).unwrap();
        journal.append(&set("a", 1)).unwrap();
        let writable = std::mem::replace(&mut journal.file, fs::File::open(directory.path(NAME)).unwrap());
        journal.append(&set("b", 2)).unwrap_err();
        journal.file = writable;
        journal.append(&set("c", 3)).unwrap();
        drop(journal);
        assert_eq!(open(&directory).unwrap().1, [set("a", 1), set("c", 3)]);
    }
}
