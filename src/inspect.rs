//! `mayfly inspect`: describes an image.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use vmm::arch::{self, Native, Platform};
use vmm::boot::image::{Error, Format, ImageInfo};
use vmm::boot::segment::Segment;
use vmm::boot::{Image, Protocol};
use vmm::config::{MemorySize, VmConfig};
use vmm::memory::Bytes;

/// Size of memory for which the places of an image are shown.
const SHOWN_MEMORY: MemorySize = MemorySize::from_bytes(16 << 30);

/// Error of a file that is no usable image.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file is no image, or the image supports no protocol.
    #[error(transparent)]
    Image(Error),
    /// No memory map contains the image.
    #[error(transparent)]
    Platform(arch::Error),
}

/// Describes the image at `path`: format, segments, notes and boot protocols.
///
/// # Errors
/// [`InspectError`] if the file is no image, the image supports no protocol, or no memory map contains it.
pub fn inspect(path: &Path) -> Result<String, InspectError> {
    describe(path, Image::open(path, Native::ARCHITECTURE))
}

/// Describes the image in `file`, which the text names `path`.
///
/// # Errors
/// As of [`inspect`].
#[allow(dead_code, reason = "mayfly-tools uses it")]
pub fn inspect_file(path: &Path, file: File) -> Result<String, InspectError> {
    describe(path, Image::from_file(path, file, Native::ARCHITECTURE))
}

fn describe(path: &Path, image: Result<Image, Error>) -> Result<String, InspectError> {
    let image = image.map_err(InspectError::Image)?;
    let info = image.info();
    let (choice, refusal) = match image.select_protocol(None) {
        Ok(protocol) => (protocol, None),
        // Its headers are described too: a protocol can be forced.
        Err(error @ Error::OnlyMultiboot2 { .. }) => (Protocol::Linux, Some(error)),
        Err(error) => return Err(InspectError::Image(error)),
    };
    let config = VmConfig::new(path.to_owned());
    let (layout, map) = Native::select_layout(&image, &config).map_err(InspectError::Platform)?;
    let plan = Native::plan_load(&image, choice, layout, SHOWN_MEMORY).map_err(InspectError::Platform)?;
    let memory = Native::memory_regions(MemorySize::MIN, layout);
    let memory = memory.first().map_or(0, |(address, _)| address.0);
    let loaded = image.segments_at(plan.image_base, choice);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}: {}, {}", path.display(), format(info), Bytes(info.size));
    let _ = writeln!(text, "\nentry point in the header: {:#x}", info.entry);
    if let Some(map) = map {
        let _ = writeln!(text, "memory map {map}; memory begins at {memory:#x}");
    }
    segments(&mut text, &loaded);
    notes(&mut text, info);
    let _ = writeln!(text, "\nprotocols");
    for support in &info.protocol_support {
        let entry = support
            .entry
            .map(|entry| entry.saturating_add(plan.image_base))
            .map_or("no".into(), |entry| format!("yes, at {entry:#x}"));
        let _ = writeln!(text, "  {:<10} {entry}: {}", support.protocol, support.reason);
    }
    let end = loaded
        .iter()
        .map(|segment| segment.physical.end)
        .max()
        .unwrap_or(0);
    let _ = match refusal {
        Some(error) => writeln!(text, "\nmayfly run fails without --protocol: {error}"),
        None => writeln!(
            text,
            "\nmayfly run boots the image by protocol {choice}; the image ends at {end:#x} and needs at least --memory {}M",
            end.saturating_sub(memory).div_ceil(1 << 20)
        ),
    };
    Ok(text)
}

fn format(info: &ImageInfo) -> String {
    match &info.format {
        Format::Elf { bits } => format!("{bits}-bit ELF for {}", info.architecture),
        Format::BzImage(setup) => format!(
            "Linux bzImage for {}, boot protocol {}.{:02}, command line up to {} bytes",
            info.architecture,
            setup.version >> 8,
            setup.version & 0xff,
            setup.command_line_size
        ),
        Format::Arm64(header) => format!(
            "arm64 Image, offset {:#x} from {}",
            header.text_offset,
            match header.is_relocatable {
                true => "any base aligned to 2 MiB",
                false => "the start of memory",
            }
        ),
        Format::Multiboot => format!("flat multiboot image for {}", info.architecture),
    }
}

fn segments(text: &mut String, segments: &[Segment]) {
    let _ = writeln!(text, "\nsegments");
    let _ = writeln!(
        text,
        "  {:>2}  {:<25} {:<25} {:<5} loaded",
        "#", "in the file", "in memory", "flags"
    );
    for segment in segments {
        let range = |start: u64, end: u64| format!("{start:#x}..{end:#x}");
        let _ = writeln!(
            text,
            "  {:>2}  {:<25} {:<25} {:<5} {}",
            segment.number,
            range(segment.file.start, segment.file.end),
            range(segment.physical.start, segment.physical.end),
            segment.flags.to_string(),
            loading(segment)
        );
    }
}

fn loading(segment: &Segment) -> String {
    let content = segment.file.end - segment.file.start;
    let zeros = segment.physical.end - segment.physical.start - content;
    let mapped = segment.mapped().end - segment.mapped().start;
    let parts = [
        (mapped, "mapped from the file"),
        (content - mapped, "read"),
        (zeros, "zeros"),
    ];
    let parts: Vec<_> = parts
        .iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, how)| format!("{} {how}", Bytes(*bytes)))
        .collect();
    if parts.is_empty() {
        "empty".into()
    } else {
        parts.join(", ")
    }
}

fn notes(text: &mut String, info: &ImageInfo) {
    if info.notes.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nnotes");
    for note in &info.notes {
        let meaning = match note.pvh_entry() {
            Some(entry) => format!("PVH entry {entry:#x}"),
            None => Bytes(note.description.len() as u64).to_string(),
        };
        let _ = writeln!(text, "  {} {}: {meaning}", note.name.escape_debug(), note.kind);
    }
}
