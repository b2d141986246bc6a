//! A file, what it is, the protocols that it offers, and its way into guest memory.

mod error;
mod facts;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::slice;

use snapshot::GuestMemory;

pub use error::Error;
pub use facts::{Format, ImageInfo};

use crate::boot::file::RegularFile;
use crate::boot::place::load_segment;
use crate::boot::protocol::{LoadedImage, Protocol};
use crate::boot::segment::Segment;
use crate::boot::{fit, multiboot, offer};
use snapshot::file::Architecture;

/// Bytes that are read when an image is opened: where a multiboot header is searched, and with them nearly always every
/// other header.
const HEAD: usize = multiboot::SEARCHED;

/// What a 32-bit field can point at, as those for an initrd in most protocols are.
const ADDRESSES_32_BITS: u64 = 1 << 32;

/// An image that has been opened.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: RegularFile,
    facts: ImageInfo,
}

impl Image {
    /// Opens the file at `path` and reads its headers.
    ///
    /// # Errors
    /// Whatever makes it impossible to load the file on `machine`, but for what depends on the guest's memory and on the
    /// protocol.
    pub fn open(path: &Path, machine: Architecture) -> Result<Self, Error> {
        let file = RegularFile::open(path, HEAD).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::of(path, file, machine)
    }

    /// Reads the headers of `file`, which errors call `path`.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn from_file(path: &Path, file: File, machine: Architecture) -> Result<Self, Error> {
        let file = RegularFile::from_file(file, HEAD).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::of(path, file, machine)
    }

    fn of(path: &Path, file: RegularFile, machine: Architecture) -> Result<Self, Error> {
        let facts = facts::inspect(path, &file, machine)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            facts,
        })
    }

    /// What the image says of itself.
    pub fn info(&self) -> &ImageInfo {
        &self.facts
    }

    /// The protocols that lead into the image.
    pub fn protocols(&self) -> Vec<Protocol> {
        self.facts
            .offers
            .iter()
            .filter(|offer| offer.entry.is_some())
            .map(|offer| offer.protocol)
            .collect()
    }

    /// The protocol to boot by: `forced`, or PVH if the image has its note, multiboot if it is 32 bits wide, Linux, multiboot.
    ///
    /// # Errors
    /// [`Error::NotOffered`] or [`Error::NoProtocol`].
    pub fn select_protocol(&self, forced: Option<Protocol>) -> Result<Protocol, Error> {
        if let Some(protocol) = forced {
            return self.entry(protocol).map(|_| protocol);
        }
        // Of Linux and multiboot, an image 32 bits wide offers multiboot only.
        let order = [Protocol::Pvh, Protocol::Linux, Protocol::Multiboot];
        let offered = self.protocols();
        order
            .into_iter()
            .find(|protocol| offered.contains(protocol))
            .ok_or_else(|| Error::NoProtocol {
                path: self.path.clone(),
                reasons: offer::reasons(&self.facts.offers),
            })
    }

    /// Puts the image into fresh memory, to be entered by `protocol`. No segment may lie over one of the `reserved` ranges.
    ///
    /// # Errors
    /// [`Error::NotOffered`]; [`Error::Fit`], after which memory is untouched; [`Error::Place`], after which it is not.
    pub fn load(
        &self,
        protocol: Protocol,
        memory: &GuestMemory,
        reserved: &[Range<u64>],
    ) -> Result<LoadedImage, Error> {
        let entry = self.entry(protocol)?;
        let segments = self.segments(protocol);
        fit::check_segments(segments, memory, reserved).map_err(|source| Error::Fit {
            path: self.path.clone(),
            source,
        })?;
        for segment in segments {
            load_segment(&self.file, segment, memory).map_err(|source| Error::Place {
                path: self.path.clone(),
                number: segment.number,
                source,
            })?;
        }
        let end = segments.iter().map(|segment| segment.physical.end).max();
        let setup = match &self.facts.format {
            Format::BzImage(setup) => Some(setup),
            Format::Elf { .. } | Format::Multiboot => None,
        };
        Ok(LoadedImage {
            protocol,
            entry,
            end: end.unwrap_or(0),
            initrd_limit: setup.map_or(ADDRESSES_32_BITS, |setup| u64::from(setup.initrd_addr_max) + 1),
            setup_header: setup.map(|setup| setup.header.clone()),
            initrd: None,
        })
    }

    /// What is loaded to be entered by `protocol`.
    pub fn segments(&self, protocol: Protocol) -> &[Segment] {
        match &self.facts.multiboot_segment {
            Some(segment) if protocol == Protocol::Multiboot => slice::from_ref(segment),
            _ => &self.facts.segments,
        }
    }

    fn entry(&self, protocol: Protocol) -> Result<u64, Error> {
        let offers = &self.facts.offers;
        let offer = offers.iter().find(|offer| offer.protocol == protocol);
        offer
            .and_then(|offer| offer.entry)
            .ok_or_else(|| Error::NotOffered {
                path: self.path.clone(),
                protocol,
                reason: offer.map(|offer| offer.reason.clone()).unwrap_or_default(),
                offered: offer::names(offers),
            })
    }
}

#[cfg(test)]
mod robustness;
#[cfg(test)]
mod tests;
