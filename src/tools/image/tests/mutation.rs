//! Damaged images: each is accepted or refused, and nothing panics. The sequence is the same in each run.

use std::fs;

use scratch::Directory;
use serde_json::json;
use tar::EntryType;

use super::layout::{BINARY, Image, LayerBlob, Layout, Tar, open_named};

/// Generator of numbers, xorshift64 of Marsaglia.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    /// Changes up to four places of `bytes`.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let value = u8::try_from(self.below(256)).unwrap();
            match self.below(6) {
                0 | 1 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
                2 => bytes.truncate(at),
                3 => bytes.insert(at, value),
                4 => drop(bytes.drain(at..(at + self.below(600)).min(bytes.len()))),
                _ => {
                    let end = (at + self.below(600)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
    }
}

fn tar() -> Vec<u8> {
    Tar::new()
        .entry(EntryType::Directory, "boot/", "", b"")
        .file("boot/k", "KERNEL".repeat(100))
        .symlink("kernel", "boot/k")
        .entry(EntryType::Link, "hard", "boot/k", b"")
        .entry(EntryType::GNULongName, "l", "", b"a/long/name\0")
        .file("x", "X")
        .entry(EntryType::XHeader, "p", "", b"11 path=ab\n")
        .file("y", "Y")
        .file("boot/.wh.other", "")
        .file("urunc.json", r#"{"com.urunc.unikernel.binary":"a2VybmVs"}"#)
        .build()
}

fn image(layer: LayerBlob) -> Image {
    Image {
        annotations: json!({BINARY: "/kernel", "com.urunc.unikernel.initrd": "/hard"}),
        config: json!({"Cmd": ["a", "b"]}),
        ..Image::new(vec![layer])
    }
}

/// Opens an archive with `content`.
fn try_archive(directory: &Directory, content: &[u8]) -> bool {
    let path = directory.write("a.tar", content);
    open_named(&format!("oci-archive:{path}")).is_ok()
}

#[test]
fn damaged_archives_never_panic() {
    let good = Layout::of(&image(LayerBlob::gzip(&tar()))).archive();
    let directory = Directory::new();
    assert!(try_archive(&directory, &good));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..500 {
        let mut bytes = good.clone();
        random.damage(&mut bytes);
        try_archive(&directory, &bytes);
    }
}

/// The digests are those of the damaged layer: the readers see the damage.
#[test]
fn damaged_layers_never_panic() {
    let mut random = Random(0xd1b5_4a32_d192_ed03);
    let mut accepted = 0;
    for number in 0..600 {
        let mut bytes = tar();
        let blob = match number % 4 {
            0 => {
                random.damage(&mut bytes);
                LayerBlob::plain(&bytes)
            }
            1 => {
                random.damage(&mut bytes);
                LayerBlob::zstd(&bytes)
            }
            kind => {
                let mut blob = if kind == 2 {
                    LayerBlob::gzip(&bytes)
                } else {
                    LayerBlob::zstd(&bytes)
                };
                random.damage(&mut blob.bytes);
                blob
            }
        };
        let mut damaged = image(blob);
        if random.below(2) == 0 {
            damaged.annotations = json!({});
        }
        accepted += u32::from(Layout::of(&damaged).open("").is_ok());
    }
    assert!(accepted > 10, "only {accepted} layers were accepted");
}

#[test]
fn damaged_metadata_never_panics() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for number in 0..400 {
        let mut layout = Layout::new();
        let manifest = layout.add(&image(LayerBlob::plain(&tar())));
        let path = layout.blob_path(manifest["digest"].as_str().unwrap());
        let mut bytes = fs::read(path).unwrap();
        if number % 2 == 0 {
            random.damage(&mut bytes);
        }
        let mut manifest = layout.blob(manifest["mediaType"].as_str().unwrap(), &bytes);
        manifest["platform"] = json!({"os": "fc", "architecture": super::layout::native()});
        layout.name(manifest, Some("v1"));
        if number % 2 == 1 {
            let mut index = fs::read(layout.directory.path("index.json")).unwrap();
            random.damage(&mut index);
            fs::write(layout.directory.path("index.json"), index).unwrap();
        }
        let _ = layout.open(":v1");
    }
}
