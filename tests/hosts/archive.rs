//! The `newc` cpio format of an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;

/// Writer of an archive. Names are relative to the root; a directory precedes its entries.
pub struct Archive<W: Write> {
    output: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// Creates an archive without entries.
    pub fn new(output: W) -> Self {
        Self { output, entries: 0 }
    }

    /// Adds an empty directory.
    pub fn add_directory(&mut self, name: &str) -> io::Result<()> {
        self.write_entry(name, DIRECTORY, &[])
    }

    /// Adds an executable file.
    pub fn add_file(&mut self, name: &str, contents: &[u8]) -> io::Result<()> {
        self.write_entry(name, EXECUTABLE, contents)
    }

    /// Writes the trailer and returns the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.write_entry("TRAILER!!!", 0, &[])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn write_entry(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        self.entries += 1;
        // Fields: inode, mode, owner, group, links, time, size, device (2), special device (2), size of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(name);
        header.push('\0');
        self.write_padded(header.as_bytes())?;
        self.write_padded(contents)
    }

    /// Writes `bytes`, padded to a multiple of 4.
    fn write_padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.output
            .write_all(&[0; 3][..bytes.len().next_multiple_of(4) - bytes.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn entries_are_padded_and_trailer_is_last() {
        let mut archive = Archive::new(Vec::new());
        archive.add_directory("bin").unwrap();
        archive.add_file("bin/sh", b"12345").unwrap();
        let bytes = archive.finish().unwrap();

        assert_eq!(bytes.len(), (110 + 4 + 2) + (110 + 7 + 3) + 8 + (110 + 11 + 3));
        let file = &bytes[116..];
        assert!(file.starts_with(b"07070100000002000081ed"), "number and mode");
        assert_eq!(&file[54..62], b"00000005", "size");
        assert_eq!(&file[94..102], b"00000007", "size of the name");
        assert_eq!(&file[110..128], b"bin/sh\0\0\0\x0012345\0\0\0");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
