//! The file or FIFO that takes the numbers.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use vmm::control::VmMetrics;

use super::Counters;
use super::line::Line;
use super::output::{Error, OutputFile};

/// The file or FIFO that takes the numbers, a JSON text a line.
#[derive(Debug)]
pub struct MetricsFile {
    output: OutputFile,
    /// The end of a line whose start was taken. It is at most a line long.
    rest: Vec<u8>,
    /// Lines that nobody has got.
    dropped: u64,
}

impl MetricsFile {
    /// Opens `path`, and makes a file if there is nothing; a FIFO need not have a reader.
    ///
    /// # Errors
    /// What a client is told.
    pub fn open(path: &Path) -> Result<Self, String> {
        Ok(Self {
            output: OutputFile::open(path).map_err(|error| error.one_line())?,
            rest: Vec::new(),
            dropped: 0,
        })
    }

    /// Writes a line. One that nobody reads is dropped, and counted in the next; this never waits.
    ///
    /// # Errors
    /// What a client is told, when the file cannot take it.
    pub fn write(&mut self, metrics: &VmMetrics, counters: &Counters) -> Result<(), String> {
        let line = Line {
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            metrics,
            counters,
            dropped: self.dropped,
        };
        let mut text =
            serde_json::to_vec(&line).map_err(|error| format!("cannot write the metrics: {error}"))?;
        text.push(b'\n');
        self.put(text).map_err(|error| error.one_line())
    }

    /// Opens the file again, because it may have been moved away. When that fails the old one serves on.
    ///
    /// # Errors
    /// What the log is told.
    pub fn reopen(&mut self) -> Result<(), String> {
        let output = self.output.reopen().map_err(|error| error.one_line())?;
        if !self.rest.is_empty() && !self.output.is_same(&output) {
            // The new file begins with a whole line.
            self.rest.clear();
            self.dropped += 1;
        }
        self.output = output;
        Ok(())
    }

    fn put(&mut self, line: Vec<u8>) -> Result<(), Error> {
        // A FIFO takes a long line in parts, and nothing may come between them.
        let finished = self.finish();
        if !matches!(finished, Ok(true)) {
            self.dropped += 1;
            return finished.map(drop);
        }
        let length = line.len();
        self.rest = line;
        let finished = self.finish();
        if self.rest.len() == length {
            self.rest.clear();
            self.dropped += 1;
        }
        finished.map(drop)
    }

    /// Writes what is left of the last line, and tells whether nothing is left.
    fn finish(&mut self) -> Result<bool, Error> {
        while !self.rest.is_empty() {
            match self.output.write(&self.rest)? {
                0 => return Ok(false),
                count => drop(self.rest.drain(..count)),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
