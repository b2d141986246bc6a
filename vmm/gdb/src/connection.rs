//! Buffered connection to gdb.

use std::io::{self, ErrorKind};

use gdbstub::conn::Connection;

/// Stream to gdb. Not `Read` and `Write`, whose further methods would be compiled for each stream.
pub trait Stream {
    /// Receives bytes. Returns 0 at the end.
    ///
    /// # Errors
    /// Those of the kernel.
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize>;

    /// Sends all bytes.
    ///
    /// # Errors
    /// Those of the kernel.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Connection whose packets leave in one call each.
pub struct BufferedConnection<'a> {
    stream: &'a mut dyn Stream,
    output: Vec<u8>,
}

impl<'a> BufferedConnection<'a> {
    pub fn new(stream: &'a mut dyn Stream) -> Self {
        Self {
            stream,
            output: Vec::new(),
        }
    }

    /// Reads bytes of gdb. Returns 0 at the end of the connection.
    ///
    /// # Errors
    /// Those of the stream, except for an interruption by a signal.
    pub fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.receive(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Connection for BufferedConnection<'_> {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.stream.send(&self.output);
        self.output.clear();
        result
    }
}
