//! What a file is that is no image.

/// Offset, bytes found there, and what the file is then with what to do about it.
const MARKS: [(usize, &[u8], &str); 16] = [
    (0, b"\x1f\x8b", "it is gzip-compressed; unpack it with gunzip"),
    (0, b"\xfd7zXZ\0", "it is xz-compressed; unpack it with unxz"),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        "it is zstd-compressed; unpack it with unzstd",
    ),
    (0, b"BZh", "it is bzip2-compressed; unpack it with bunzip2"),
    (
        0,
        b"\x04\x22\x4d\x18",
        "it is lz4-compressed; unpack it with unlz4",
    ),
    (
        0,
        b"\x02\x21\x4c\x18",
        "it is lz4-compressed; unpack it with unlz4",
    ),
    (0, b"\x89LZO", "it is lzo-compressed; unpack it with lzop -d"),
    (
        0,
        b"PK\x03\x04",
        "it is a zip archive; unpack it and name the kernel in it",
    ),
    (
        257,
        b"ustar",
        "it is a tar archive; unpack it and name the kernel in it",
    ),
    (
        0,
        b"070701",
        "it is a cpio archive; if it is an initrd, give it as the initrd and a kernel besides",
    ),
    (0, b"#!", "it is a script; name the kernel that it starts"),
    (0, b"{", "it is text, perhaps a configuration; name the kernel"),
    (
        56,
        b"ARM\x64",
        "it is an arm64 Linux Image; use the vmlinux of the same build, which is ELF",
    ),
    (
        0,
        b"MZ",
        "it is an EFI program without a Linux header; use the ELF file that it was made of",
    ),
    (
        0,
        b"QFI\xfb",
        "it is a qcow2 disk; give it as a disk, converted to raw, and a kernel besides",
    ),
    (
        510,
        b"\x55\xaa",
        "it is a disk with a boot sector; give it as a disk and a kernel besides",
    ),
];

/// What a file is that begins with `head`, as the end of a sentence.
pub fn describe(head: &[u8]) -> &'static str {
    MARKS
        .iter()
        .find(|(offset, mark, _)| head.get(*offset..).is_some_and(|rest| rest.starts_with(mark)))
        .map_or(
            "it has none of the marks of ELF, bzImage and multiboot",
            |(_, _, meaning)| meaning,
        )
}

#[cfg(test)]
mod tests {
    use super::{MARKS, describe};

    #[test]
    fn every_mark_is_recognised() {
        for (offset, mark, meaning) in MARKS {
            let mut head = vec![0; offset];
            head.extend_from_slice(mark);
            assert_eq!(describe(&head), meaning);
            assert_ne!(describe(&head[..head.len() - 1]), meaning);
        }
    }
}
