//! A file, what it is, the protocols that it offers, and its way into guest memory.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::slice;

use snapshot::GuestMemory;

use crate::boot::bzimage::{self, Setup};
use crate::boot::elf::{self, Elf};
use crate::boot::file::{Error as FileError, RegularFile};
use crate::boot::fit::{self, Error as FitError};
use crate::boot::foreign;
use crate::boot::multiboot::{self, Error as MultibootError, Header};
use crate::boot::notes::Note;
use crate::boot::offer::{self, Offer};
use crate::boot::place::{Error as PlaceError, place};
use crate::boot::protocol::{Loaded, Machine, Protocol};
use crate::boot::segment::Segment;

/// Bytes that are read when an image is opened: where a multiboot header is searched, and with them nearly always every
/// other header.
const HEAD: usize = multiboot::SEARCHED;

/// What a 32-bit field can point at, as those for an initrd in most protocols are.
const ADDRESSES_32_BITS: u64 = 1 << 32;

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened.
    #[error("cannot open {path}")]
    Open {
        /// Path of the image.
        path: PathBuf,
        /// What was in the way.
        #[source]
        source: FileError,
    },
    /// The file is no image.
    #[error("{path} is no image of a kernel or unikernel: {reason}")]
    Foreign {
        /// Path of the file.
        path: PathBuf,
        /// What it is, and what to do about it.
        reason: &'static str,
    },
    /// An ELF file that cannot be an image.
    #[error("cannot load {path}")]
    Elf {
        /// Path of the image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: elf::Error,
    },
    /// A bzImage that cannot be loaded.
    #[error("cannot load {path}")]
    BzImage {
        /// Path of the image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: bzimage::Error,
    },
    /// A multiboot image, not ELF, that cannot be loaded.
    #[error("cannot load {path}")]
    Multiboot {
        /// Path of the image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: MultibootError,
    },
    /// No protocol leads into the image.
    #[error("cannot boot {path} by any protocol: {reasons}")]
    NoProtocol {
        /// Path of the image.
        path: PathBuf,
        /// Each protocol with what it lacks.
        reasons: String,
    },
    /// The protocol that was asked for does not lead into the image.
    #[error("cannot boot {path} by {protocol}: {reason}; it offers {offered}")]
    NotOffered {
        /// Path of the image.
        path: PathBuf,
        /// What was asked for.
        protocol: Protocol,
        /// Why it cannot be.
        reason: String,
        /// What can be.
        offered: String,
    },
    /// The segments cannot be where they belong.
    #[error("cannot load {path}")]
    Fit {
        /// Path of the image.
        path: PathBuf,
        /// What is in the way.
        #[source]
        source: FitError,
    },
    /// A segment did not get into memory.
    #[error("cannot load {path}")]
    Place {
        /// Path of the image.
        path: PathBuf,
        /// What failed.
        #[source]
        source: PlaceError,
    },
}

/// What kind of file an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// ELF, 32 or 64 bits wide.
    Elf {
        /// 32 or 64.
        bits: u8,
    },
    /// Linux's compressed x86 kernel.
    BzImage(Setup),
    /// No ELF, but with a multiboot header that says where it belongs.
    Multiboot,
}

/// What an image says of itself.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What kind of file it is.
    pub format: Format,
    /// What it is made for.
    pub machine: Machine,
    /// Size of the file in bytes.
    pub size: u64,
    /// Entry as in its header: physical or, in ELF, perhaps virtual.
    pub entry: u64,
    /// What is loaded. [`Segment::mapped`] says how.
    pub segments: Vec<Segment>,
    /// What is loaded by multiboot instead, if its header gives addresses.
    pub multiboot_segment: Option<Segment>,
    /// ELF notes.
    pub notes: Vec<Note>,
    /// For each protocol, whether it leads into the image and why.
    pub offers: [Offer; 3],
}

/// An image that has been opened.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: RegularFile,
    facts: Facts,
}

impl Image {
    /// Opens the file at `path` and reads its headers.
    ///
    /// # Errors
    /// Whatever makes it impossible to load the file on `machine`, but for what depends on the guest's memory and on the
    /// protocol.
    pub fn open(path: &Path, machine: Machine) -> Result<Self, Error> {
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
    pub fn from_file(path: &Path, file: File, machine: Machine) -> Result<Self, Error> {
        let file = RegularFile::from_file(file, HEAD).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::of(path, file, machine)
    }

    fn of(path: &Path, file: RegularFile, machine: Machine) -> Result<Self, Error> {
        let facts = inspect(path, &file, machine)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            facts,
        })
    }

    /// What the image says of itself.
    pub fn facts(&self) -> &Facts {
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
    pub fn choose(&self, forced: Option<Protocol>) -> Result<Protocol, Error> {
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
    ) -> Result<Loaded, Error> {
        let entry = self.entry(protocol)?;
        let segments = self.segments(protocol);
        fit::check(segments, memory, reserved).map_err(|source| Error::Fit {
            path: self.path.clone(),
            source,
        })?;
        for segment in segments {
            place(&self.file, segment, memory).map_err(|source| Error::Place {
                path: self.path.clone(),
                source,
            })?;
        }
        let end = segments.iter().map(|segment| segment.physical.end).max();
        let setup = match &self.facts.format {
            Format::BzImage(setup) => Some(setup),
            Format::Elf { .. } | Format::Multiboot => None,
        };
        Ok(Loaded {
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

fn inspect(path: &Path, file: &RegularFile, machine: Machine) -> Result<Facts, Error> {
    let head = file.head();
    let path_of = || path.to_owned();
    if head.starts_with(&elf::MAGIC) {
        let elf = elf::parse(file, machine).map_err(|source| Error::Elf {
            path: path_of(),
            source,
        })?;
        return Ok(elf_facts(elf, file, machine));
    }
    if bzimage::is_bzimage(head) {
        let (setup, segment) = bzimage::parse(file, machine).map_err(|source| Error::BzImage {
            path: path_of(),
            source,
        })?;
        return Ok(bzimage_facts(setup, segment, file.size()));
    }
    let header = match multiboot::find(head) {
        Err(MultibootError::Missing) => {
            return Err(Error::Foreign {
                path: path_of(),
                reason: foreign::describe(head),
            });
        }
        found => found,
    };
    multiboot_facts(header, file.size(), machine).map_err(|source| Error::Multiboot {
        path: path_of(),
        source,
    })
}

fn elf_facts(elf: Elf, file: &RegularFile, machine: Machine) -> Facts {
    let multiboot = multiboot::find(file.head()).and_then(|header| {
        let segment = header
            .addresses
            .map(|addresses| multiboot::segment(header.offset, addresses, file.size()));
        Ok((header, segment.transpose()?))
    });
    let multiboot_segment = multiboot.as_ref().ok().and_then(|(_, segment)| segment.clone());
    let offers = match machine {
        Machine::X86_64 => [
            offer::linux(&elf),
            offer::pvh(&elf),
            offer::multiboot(&elf, &multiboot),
        ],
        Machine::Aarch64 => [
            offer::linux(&elf),
            Offer::no(Protocol::Pvh, "it is a protocol of x86"),
            Offer::no(Protocol::Multiboot, "it is a protocol of x86"),
        ],
    };
    Facts {
        format: Format::Elf {
            bits: if elf.is_64_bit { 64 } else { 32 },
        },
        machine,
        size: file.size(),
        entry: elf.entry,
        segments: elf.segments,
        multiboot_segment,
        notes: elf.notes,
        offers,
    }
}

fn bzimage_facts(setup: Setup, segment: Segment, size: u64) -> Facts {
    let entry = segment.physical.start.saturating_add(bzimage::ENTRY_64);
    Facts {
        format: Format::BzImage(setup),
        machine: Machine::X86_64,
        size,
        entry,
        segments: vec![segment],
        multiboot_segment: None,
        notes: Vec::new(),
        offers: [
            Offer::yes(Protocol::Linux, entry, "a bzImage with a 64-bit entry"),
            Offer::no(
                Protocol::Pvh,
                "a bzImage has no notes; use the vmlinux of the same build",
            ),
            Offer::no(Protocol::Multiboot, "a bzImage has no multiboot header"),
        ],
    }
}

fn multiboot_facts(
    header: Result<Header, MultibootError>,
    size: u64,
    machine: Machine,
) -> Result<Facts, MultibootError> {
    let header = header?;
    let addresses = header.addresses.ok_or(MultibootError::Missing)?;
    let segment = multiboot::segment(header.offset, addresses, size)?;
    let none = "the image is neither ELF nor a bzImage";
    let offer = match machine {
        Machine::X86_64 => offer::multiboot_at(addresses.entry.into(), slice::from_ref(&segment), &header),
        Machine::Aarch64 => Offer::no(Protocol::Multiboot, "it is a protocol of x86"),
    };
    Ok(Facts {
        format: Format::Multiboot,
        machine: Machine::X86_64,
        size,
        entry: addresses.entry.into(),
        segments: vec![segment.clone()],
        multiboot_segment: Some(segment),
        notes: Vec::new(),
        offers: [
            Offer::no(Protocol::Linux, none),
            Offer::no(Protocol::Pvh, none),
            offer,
        ],
    })
}

#[cfg(test)]
mod robustness;
#[cfg(test)]
mod tests;
