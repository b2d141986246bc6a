//! Layers of an image: formats, digests, links, whiteouts and limits.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;

use serde_json::json;
use tar::EntryType;

use super::layout::{BINARY, Files, Image, LayerBlob, Layout, Tar, digest};
use crate::image::reference::Reference;
use crate::image::root::{Place, Wanted};
use crate::image::root_fs;
use crate::image::select::select;
use crate::image::store::Store;

/// Returns the error of an image with these layers, whose annotation names `/kernel`.
fn error(layers: Vec<LayerBlob>) -> String {
    Layout::of(&Image::with_kernel(layers)).error("")
}

fn open(layers: Vec<LayerBlob>) -> Files {
    Layout::of(&Image::with_kernel(layers)).open("").unwrap()
}

fn layer(tar: Tar) -> LayerBlob {
    LayerBlob::gzip(&tar.build())
}

fn kernel_tar() -> Vec<u8> {
    Tar::new().file("kernel", "KERNEL").build()
}

#[test]
fn layers_of_each_format_are_read() {
    let tar = kernel_tar();
    let docker = |blob: LayerBlob, media_type: &str| LayerBlob {
        media_type: media_type.into(),
        ..blob
    };
    for blob in [
        LayerBlob::plain(&tar),
        LayerBlob::gzip(&tar),
        LayerBlob::zstd(&tar),
        docker(
            LayerBlob::gzip(&tar),
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
        docker(
            LayerBlob::plain(&tar),
            "application/vnd.docker.image.rootfs.diff.tar",
        ),
    ] {
        let media_type = blob.media_type.clone();
        assert_eq!(open(vec![blob]).kernel, b"KERNEL", "{media_type}");
    }
    for (media_type, expected) in [
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "foreign layer",
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "foreign layer",
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "the layer is encrypted",
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+bzip2",
            "use a tar archive",
        ),
    ] {
        let error = error(vec![docker(LayerBlob::gzip(&tar), media_type)]);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn streams_of_several_frames_are_read() {
    let tar = Tar::new()
        .file("a", vec![1; 5000])
        .file("kernel", "KERNEL")
        .build();
    let (first, second) = tar.split_at(3000);
    // A skippable frame of 3 bytes, RFC 8878 section 3.1.2.
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
    let zstd = |bytes| LayerBlob::zstd(bytes).bytes;
    let gzip = |bytes| LayerBlob::gzip(bytes).bytes;
    let mut blobs = [LayerBlob::zstd(&tar), LayerBlob::gzip(&tar)];
    blobs[0].bytes = [&zstd(first)[..], &skippable, &zstd(second), &skippable].concat();
    blobs[1].bytes = [gzip(first), gzip(second)].concat();
    for blob in blobs {
        assert_eq!(open(vec![blob]).kernel, b"KERNEL");
    }
    let mut blob = LayerBlob::zstd(&tar);
    blob.bytes.extend(&skippable[..9]);
    assert!(error(vec![blob]).contains("cannot unpack the tar archive; make the layer again: "));
}

#[test]
fn kernel_is_sealed() {
    let files = open(vec![LayerBlob::gzip(&kernel_tar())]);
    let file = files.opened.kernel.file;
    assert!(file.write_at(b"x", 0).is_err());
    assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err());
}

#[test]
fn upper_layer_replaces_files_and_lower_layers_stay_unread() {
    let upper = layer(Tar::new().file("kernel", "NEW"));
    let mut lower = layer(Tar::new().file("kernel", "OLD"));
    lower.diff_id = digest(b"");
    assert_eq!(open(vec![lower.clone(), upper]).kernel, b"NEW");
    let error = error(vec![lower, layer(Tar::new().file("other", ""))]);
    assert!(error.starts_with("cannot read layer 1 of 2 (sha256:"), "{error}");
}

#[test]
fn digests_are_compared() {
    let image = || Image::with_kernel(vec![LayerBlob::gzip(&kernel_tar())]);
    let mut forged = image();
    forged.layers[0].diff_id = digest(b"other");
    let text = Layout::of(&forged).error("");
    assert!(text.contains("unpacked, it has the digest sha256:"), "{text}");
    forged.layers[0].diff_id = "sha512:00".into();
    assert!(Layout::of(&forged).error("").contains("states sha512:00"));
    let mut layout = Layout::new();
    let manifest = layout.add(&image());
    layout.name(manifest.clone(), None);
    let manifest = manifest["digest"].as_str().unwrap().to_owned();
    for entry in fs::read_dir(layout.directory.path("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let object = match format!("sha256:{}", path.file_name().unwrap().to_str().unwrap()) {
            digest if digest == manifest => "manifest",
            digest if digest == super::layout::digest(&image().layers[0].bytes) => "layer",
            _ => "configuration",
        };
        let bytes = fs::read(&path).unwrap();
        // In a gzip stream, byte 4 is a part of the time, RFC 1952 section 2.3: the content stays the same.
        let mut damaged = bytes.clone();
        damaged[4] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let text = layout.error("");
        assert!(
            text.contains(object) && text.contains("damaged or forged"),
            "{text}"
        );
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let text = layout.error("");
        let expected = format!(
            "it has {} bytes, and its descriptor states {}",
            bytes.len() - 1,
            bytes.len()
        );
        assert!(text.contains(&expected), "{text}");
        fs::remove_file(&path).unwrap();
        assert!(layout.error("").contains("the layout has no such blob"));
        fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(layout.open("").unwrap().kernel, b"KERNEL");
}

#[test]
fn digest_covers_bytes_behind_the_archive() {
    let mut blob = LayerBlob::plain(&kernel_tar());
    let mut layout = Layout::new();
    blob.bytes.extend(b"trailer");
    let stated = blob.diff_id.clone();
    let manifest = layout.add(&Image::with_kernel(vec![blob.clone()]));
    layout.name(manifest, None);
    assert!(layout.error("").contains(&format!("states {stated}")));
    blob.diff_id = digest(&blob.bytes);
    assert_eq!(open(vec![blob]).kernel, b"KERNEL");
}

#[test]
fn incomplete_last_block_is_accepted() {
    let tar = kernel_tar();
    assert_eq!(open(vec![LayerBlob::gzip(&tar[..512 + 6])]).kernel, b"KERNEL");
    assert!(error(vec![LayerBlob::gzip(&tar[..100])]).contains("cannot unpack the tar archive"));
}

#[test]
fn other_digest_algorithms_are_refused() {
    let mut layout = Layout::new();
    let mut manifest = layout.add(&Image::with_kernel(vec![]));
    manifest["digest"] = format!("sha512:{}", "0".repeat(128)).into();
    layout.name(manifest, None);
    let error = layout.error("");
    assert!(
        error.contains("the digest algorithm sha512 is not supported; use sha256"),
        "{error}"
    );
}

#[test]
fn links_within_the_root_are_followed() {
    for tar in [
        Tar::new().symlink("kernel", "boot/k").file("boot/k", "KERNEL"),
        Tar::new().symlink("kernel", "/boot/k").file("./boot/k", "KERNEL"),
        Tar::new()
            .symlink("kernel", "d/k")
            .symlink("d", "./boot")
            .file("boot/k", "KERNEL"),
        Tar::new()
            .file("boot/k", "KERNEL")
            .entry(EntryType::Link, "kernel", "boot/k", b""),
    ] {
        assert_eq!(open(vec![layer(tar)]).kernel, b"KERNEL");
    }
    // A hard link keeps the file of its layer.
    let tar = Tar::new().file("k", "KERNEL");
    let lower = layer(tar.entry(EntryType::Link, "kernel", "k", b""));
    let upper = layer(Tar::new().file("k", "OTHER"));
    assert_eq!(open(vec![lower, upper]).kernel, b"KERNEL");
    // The link and its target are in different layers.
    let lower = layer(Tar::new().file("k1", "KERNEL"));
    let upper = layer(Tar::new().symlink("kernel", "k1"));
    assert_eq!(open(vec![lower.clone(), upper.clone()]).kernel, b"KERNEL");
    assert_eq!(open(vec![upper, lower]).kernel, b"KERNEL");
}

#[test]
fn links_out_of_the_root_and_loops_are_refused() {
    for (target, expected) in [
        ("../../etc/shadow", "the path ../../etc/shadow leaves the root"),
        ("/../k", "the path /../k leaves the root"),
        ("kernel", "more than 40 links"),
        ("/nowhere", "no layer of the image has it"),
    ] {
        let text = error(vec![layer(Tar::new().symlink("kernel", target))]);
        assert!(
            text.starts_with("cannot use the kernel /kernel: ") && text.contains(expected),
            "{text}"
        );
    }
    let tar = Tar::new().entry(EntryType::Link, "kernel", "../../etc/shadow", b"");
    assert!(error(vec![layer(tar)]).contains("the path contains .., which may leave the root"));
    let tar = Tar::new().entry(EntryType::Link, "kernel", "kernel", b"");
    assert!(error(vec![layer(tar)]).contains("more than 40 links"));
}

#[test]
fn entries_out_of_the_root_are_refused() {
    for name in ["../kernel", "a/../../kernel", "a/.."] {
        let text = error(vec![layer(Tar::new().file(name, "X").file("kernel", "KERNEL"))]);
        assert!(text.contains(&format!("the entry {name:?} is refused")), "{text}");
    }
    assert_eq!(
        open(vec![layer(Tar::new().file("/kernel", "KERNEL"))]).kernel,
        b"KERNEL"
    );
}

#[test]
fn only_a_regular_file_is_a_kernel() {
    for (kind, name) in [
        (EntryType::Char, "character device"),
        (EntryType::Block, "block device"),
        (EntryType::Fifo, "FIFO"),
        (EntryType::Directory, "directory"),
        (EntryType::GNUSparse, "sparse file"),
        (EntryType::new(b'Z'), "file of an unknown type"),
    ] {
        let text = error(vec![layer(Tar::new().entry(kind, "kernel", "", b""))]);
        assert!(
            text.contains(&format!("/kernel is a {name}; a regular file is required")),
            "{text}"
        );
    }
    assert!(error(vec![layer(Tar::new().file("kernel", ""))]).contains("the file is empty"));
    assert!(error(vec![layer(Tar::new().file("kernel/x", "X"))]).contains("no layer of the image has it"));
    assert!(error(vec![]).contains("no layer of the image has it"));
}

#[test]
fn whiteouts_hide_files_of_lower_layers() {
    let lower = || layer(Tar::new().file("boot/kernel", "KERNEL").file("x", "X"));
    let image = |layers| {
        Layout::of(&Image {
            annotations: json!({BINARY: "/boot/kernel"}),
            ..Image::new(layers)
        })
    };
    for whiteout in ["boot/.wh.kernel", ".wh.boot", "boot/.wh..wh..opq", ".wh..wh..opq"] {
        let upper = layer(Tar::new().file(whiteout, ""));
        let digest = digest(&upper.bytes);
        let text = image(vec![lower(), upper]).error("");
        let expected = format!(
            "cannot use the kernel /boot/kernel: layer 2 ({digest}) removes it by a whiteout; make the image again without it"
        );
        assert_eq!(text, expected, "{whiteout}");
        // A whiteout hides nothing of its own layer.
        let both = layer(Tar::new().file(whiteout, "").file("boot/kernel", "NEW"));
        assert_eq!(
            image(vec![lower(), both]).open("").unwrap().kernel,
            b"NEW",
            "{whiteout}"
        );
    }
    for whiteout in [".wh.x", "boot/.wh.kern", "other/.wh..wh..opq", ".wh."] {
        let upper = layer(Tar::new().file(whiteout, ""));
        assert_eq!(
            image(vec![lower(), upper]).open("").unwrap().kernel,
            b"KERNEL",
            "{whiteout}"
        );
    }
}

#[test]
fn long_names_are_read() {
    let long = format!("{}/kernel", "d".repeat(300));
    let name = [long.as_bytes(), b"\0"].concat();
    let record = |key: &str, value: &str| {
        let text = format!(" {key}={value}\n");
        let length = (1..)
            .find(|length: &usize| text.len() + length.to_string().len() == *length)
            .unwrap();
        format!("{length}{text}")
    };
    for tar in [
        Tar::new()
            .entry(EntryType::GNULongName, "././@LongLink", "", &name)
            .file("x", "KERNEL"),
        Tar::new()
            .entry(EntryType::XHeader, "pax", "", record("path", &long).as_bytes())
            .file("x", "KERNEL"),
    ] {
        let tar = tar.symlink("kernel", &format!("{}/../l", "e"));
        let tar = tar
            .entry(EntryType::GNULongLink, "././@LongLink", "", &name)
            .symlink("l", "");
        assert_eq!(open(vec![layer(tar)]).kernel, b"KERNEL");
    }
    let size = Tar::new()
        .entry(EntryType::XHeader, "pax", "", record("size", "7").as_bytes())
        .file("kernel", "KERNEL");
    assert!(error(vec![layer(size)]).contains("its headers state different sizes"));
    let sparse = Tar::new()
        .entry(
            EntryType::XHeader,
            "pax",
            "",
            record("GNU.sparse.major", "1").as_bytes(),
        )
        .file("kernel", "KERNEL");
    assert!(error(vec![layer(sparse)]).contains("/kernel is a sparse file"));
    let global = Tar::new()
        .entry(
            EntryType::XGlobalHeader,
            "pax",
            "",
            record("path", "/x").as_bytes(),
        )
        .file("kernel", "KERNEL");
    assert!(error(vec![layer(global)]).contains("it names all entries alike"));
}

#[test]
fn limits_are_enforced() {
    let bomb = |size: usize| {
        Tar::new()
            .file("other", vec![0; size])
            .file("kernel", "KERNEL")
            .build()
    };
    let text = error(vec![LayerBlob::gzip(&bomb(3 << 20))]);
    assert!(
        text.contains("more than 500 times as large as compressed"),
        "{text}"
    );
    assert_eq!(open(vec![LayerBlob::plain(&bomb(3 << 20))]).kernel, b"KERNEL");
    let text = error(vec![LayerBlob::plain(&bomb(5 << 20))]);
    assert!(text.contains("exceeds the limit of 4 MiB"), "{text}");
    let mut tar = Tar::new();
    for number in 0..101 {
        tar = tar.file(&number.to_string(), "");
    }
    assert!(error(vec![layer(tar)]).contains("more than 100 entries"));
    let mut tar = Tar::new();
    for number in 0..20 {
        let name = [&b"d/".repeat(2000)[..], &[b'a' + number]].concat();
        let extension = tar.entry(EntryType::GNULongName, "l", "", &name);
        tar = extension.file("x", "");
    }
    let text = error(vec![layer(tar)]);
    assert!(
        text.contains("the paths of the entries have more than 64 KiB"),
        "{text}"
    );
    let text = error(vec![LayerBlob::plain(
        &Tar::new().file("kernel", vec![1; 3 << 20]).build(),
    )]);
    assert!(
        text.contains("cannot use the kernel /kernel: it has 3 MiB, and the limit is 2 MiB"),
        "{text}"
    );
    let name = vec![b'a'; (1 << 20) + 1];
    let tar = Tar::new().entry(EntryType::GNULongName, "l", "", &name);
    assert!(error(vec![LayerBlob::plain(&tar.build())]).contains("an extension header has 1048577 bytes"));
    let text = error((0..257).map(|_| layer(Tar::new())).collect());
    assert_eq!(text, "it has more than 256 layers; use a smaller image");
}

#[test]
fn large_metadata_is_refused() {
    let mut layout = Layout::new();
    let mut descriptor = layout.add(&Image::with_kernel(vec![]));
    let path = layout.blob_path(descriptor["digest"].as_str().unwrap());
    let size = (4 << 20) + 1;
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(size)
        .unwrap();
    descriptor["size"] = size.into();
    layout.name(descriptor, None);
    let text = layout.error("");
    assert!(
        text.contains("its size of 4194305 bytes exceeds the limit of 4 MiB"),
        "{text}"
    );
    let mut index = fs::File::create(layout.directory.path("index.json")).unwrap();
    index.write_all(&vec![b' '; 5 << 20]).unwrap();
    assert!(
        layout
            .error("")
            .starts_with("cannot read the file index.json: its size of 5 MiB")
    );
}

#[test]
fn configuration_lists_all_layers() {
    let mut image = Image::with_kernel(vec![layer(Tar::new())]);
    image.layers[0].diff_id = digest(b"");
    let mut layout = Layout::new();
    let manifest = layout.add(&image);
    let path = layout.blob_path(manifest["digest"].as_str().unwrap());
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    value["layers"] = json!([]);
    let descriptor = layout.blob(
        "application/vnd.oci.image.manifest.v1+json",
        value.to_string().as_bytes(),
    );
    layout.name(descriptor, None);
    assert_eq!(
        layout.error(""),
        "the configuration lists 1 layers, and the manifest 0; make the image again"
    );
}

#[test]
fn directory_replaces_link_of_lower_layer() {
    let lower = || {
        layer(
            Tar::new()
                .symlink("boot", "usr/boot")
                .file("usr/boot/kernel", "OLD"),
        )
    };
    let directory = |files: Tar| layer(files.entry(EntryType::Directory, "boot/", "", b""));
    let image = |layers| {
        Layout::of(&Image {
            annotations: json!({BINARY: "/boot/kernel"}),
            ..Image::new(layers)
        })
    };
    assert_eq!(image(vec![lower()]).open("").unwrap().kernel, b"OLD");
    let upper = directory(Tar::new().file("boot/readme", "x"));
    let error = image(vec![lower(), upper]).error("");
    assert!(error.contains("no layer of the image has it"), "{error}");
    let upper = directory(Tar::new().file("boot/kernel", "NEW"));
    assert_eq!(image(vec![lower(), upper]).open("").unwrap().kernel, b"NEW");
    // A link above the directory precedes.
    let layers = vec![
        lower(),
        directory(Tar::new()),
        layer(Tar::new().symlink("boot", "usr/boot")),
    ];
    assert_eq!(image(layers).open("").unwrap().kernel, b"OLD");
}

#[test]
fn unpacked_bytes_of_all_layers_are_limited() {
    let bomb = || LayerBlob::plain(&Tar::new().file("other", vec![0; 3 << 20]).build());
    let kernel = || layer(Tar::new().file("kernel", "KERNEL"));
    let layers = |bombs: usize| (0..bombs).map(|_| bomb());
    let all = [kernel()].into_iter().chain(layers(3)).collect();
    assert_eq!(open(all).kernel, b"KERNEL");
    let text = error([kernel()].into_iter().chain(layers(4)).collect());
    assert!(
        text.contains("unpacked, the layers exceed the limit of 10 MiB in total"),
        "{text}"
    );
    // Layers below the file are not read.
    assert_eq!(open(layers(4).chain([kernel()]).collect()).kernel, b"KERNEL");
}

#[test]
fn content_of_other_entries_is_refused() {
    for kind in [
        EntryType::Link,
        EntryType::Symlink,
        EntryType::Directory,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
    ] {
        let text = error(vec![layer(
            Tar::new().entry(kind, "x", "y", &[0; 512]).file("kernel", "K"),
        )]);
        assert!(
            text.contains("the entry \"x\" is refused: it has content and is no file"),
            "{text}"
        );
    }
}

#[test]
fn content_of_a_path_is_kept_once() {
    let path = "unikraft/bin/kernel";
    let same = |content: &str| layer(Tar::new().file(path, content).file(path, content.repeat(2)));
    let large = LayerBlob::plain(&Tar::new().file(path, vec![1; 3 << 20]).build());
    let layers = vec![same("a"), same("b"), same("c"), large];
    let layout = Layout::of(&Image::new(layers));
    let reference = Reference::parse(layout.image("").as_ref()).unwrap();
    let store = Store::open(&reference).unwrap();
    let selected = select(&store, &reference).unwrap();
    let mut root = root_fs(&store, &selected, "oci:a");
    let wanted = |path: &str| Wanted {
        role: "kernel",
        path: path.into(),
        layer: None,
        limit: 2 << 20,
        place: Place::Memory(CString::default()),
    };
    root.want(wanted(path));
    assert!(root.find(&wanted("missing")).is_err());
    assert_eq!(root.kept_sizes(), [2]);
    // The kept content is that of layer 3, and layer 4 has another.
    assert!(root.find(&wanted(path)).is_err());
    let below = Wanted {
        layer: Some(1),
        ..wanted(path)
    };
    let content = root.find(&below).unwrap();
    let mut bytes = [0; 2];
    content.file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"bb");
}
