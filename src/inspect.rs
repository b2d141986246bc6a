//! `mayfly inspect`: what booting an image would do, and why.

use std::fmt::Write;
use std::path::Path;

use vmm::arch::{Native, Platform};
use vmm::boot::Image;
use vmm::boot::image::{Error, Format, ImageInfo};
use vmm::boot::segment::Segment;
use vmm::memory::Bytes;

/// Describes the image at `path`.
///
/// # Errors
/// [`Error`] when it is no image, or no protocol leads into it.
pub fn inspect(path: &Path) -> Result<String, Error> {
    let image = Image::open(path, Native::ARCHITECTURE)?;
    let facts = image.info();
    let choice = image.select_protocol(None)?;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{}: {}, {}",
        path.display(),
        format(facts),
        Bytes(facts.size)
    );
    let _ = writeln!(text, "\nentry {:#x}, as the image has it", facts.entry);
    segments(&mut text, image.segments(choice));
    notes(&mut text, facts);
    let _ = writeln!(text, "\nprotocols");
    for offer in &facts.protocol_support {
        let entry = offer
            .entry
            .map_or("no".into(), |entry| format!("yes, at {entry:#x}"));
        let _ = writeln!(text, "  {:<10} {entry}: {}", offer.protocol, offer.reason);
    }
    let end = image
        .segments(choice)
        .iter()
        .map(|segment| segment.physical.end)
        .max()
        .unwrap_or(0);
    let _ = writeln!(
        text,
        "\nmayfly run would enter it by {choice}; it ends at {end:#x}, so that --memory {}M is the least that holds it",
        end.div_ceil(1 << 20)
    );
    Ok(text)
}

fn format(facts: &ImageInfo) -> String {
    match &facts.format {
        Format::Elf { bits } => format!("ELF of {bits} bits for {}", facts.architecture),
        Format::BzImage(setup) => format!(
            "Linux bzImage for {}, boot protocol {}.{:02}, command line of at most {} bytes",
            facts.architecture,
            setup.version >> 8,
            setup.version & 0xff,
            setup.command_line_size
        ),
        Format::Multiboot => format!("flat multiboot image for {}", facts.architecture),
    }
}

fn segments(text: &mut String, segments: &[Segment]) {
    let _ = writeln!(text, "\nsegments");
    let _ = writeln!(
        text,
        "  {:>2}  {:<25} {:<25} {:<5} how it is loaded",
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

fn notes(text: &mut String, facts: &ImageInfo) {
    if facts.notes.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nnotes");
    for note in &facts.notes {
        let meaning = match note.pvh_entry() {
            Some(entry) => format!("PVH entry {entry:#x}"),
            None => Bytes(note.description.len() as u64).to_string(),
        };
        let _ = writeln!(text, "  {} {}: {meaning}", note.name.escape_debug(), note.kind);
    }
}
