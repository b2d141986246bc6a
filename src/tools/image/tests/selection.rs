//! Tags, digests, platforms, and containers of images.

use std::fs;
use std::os::unix::fs::symlink;

use scratch::Directory;
use serde_json::{Value, json};

use super::layout::{BINARY, Image, LayerBlob, Layout, Tar, native, open_named};
use crate::image::reference::Reference;
use crate::image::select::select;
use crate::image::store::Store;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn image(kernel: &str) -> Image {
    Image::with_kernel(vec![LayerBlob::gzip(&Tar::new().file("kernel", kernel).build())])
}

fn kernel(layout: &Layout, suffix: &str) -> String {
    String::from_utf8(layout.open(suffix).unwrap().kernel).unwrap()
}

#[test]
fn tag_or_digest_selects_an_image() {
    let mut layout = Layout::new();
    let [one, two] = ["one", "two"].map(|name| layout.add(&image(name)));
    layout.name(one.clone(), Some("v1"));
    layout.name(two.clone(), Some("r.io/app:v2"));
    layout.name(two.clone(), Some("latest"));
    assert_eq!(kernel(&layout, ":v1"), "one");
    assert_eq!(kernel(&layout, ":r.io/app:v2"), "two");
    let digest = |descriptor: &Value| format!("@{}", descriptor["digest"].as_str().unwrap());
    assert_eq!(kernel(&layout, &digest(&two)), "two");
    assert_eq!(kernel(&layout, &format!(":v1{}", digest(&one))), "one");
    let error = layout.error("");
    assert!(
        error.starts_with("several images match; append the tag or the digest of one: :v1 (linux/")
            && error.contains(":latest (linux/")
            && error.contains(&digest(&one)),
        "{error}"
    );
    let error = layout.error(":v3");
    assert!(
        error.starts_with("no image in it has the tag \"v3\"; it has :v1 ("),
        "{error}"
    );
    let error = layout.error(&format!(":v1{}", digest(&two)));
    assert!(
        error.contains("has the tag \"v1\" and the digest sha256:"),
        "{error}"
    );
}

#[test]
fn two_tags_of_one_image_are_no_choice() {
    let mut layout = Layout::new();
    let one = layout.add(&image("one"));
    layout.name(one.clone(), Some("v1"));
    layout.name(one, Some("latest"));
    assert_eq!(kernel(&layout, ""), "one");
}

#[test]
fn architecture_and_monitor_select_of_an_index() {
    let mut layout = Layout::new();
    let platform = |os: &str, architecture: &str| {
        let mut descriptor = layout.add(&image(&format!("{os} {architecture}")));
        descriptor["platform"] = json!({"os": os, "architecture": architecture});
        descriptor
    };
    let kraft = if native() == "amd64" { "x86_64" } else { "arm64" };
    let (fc, qemu) = (platform("fc", kraft), platform("qemu", kraft));
    let manifests = [&fc, &qemu, &platform("fc", "riscv64")];
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    let index = layout.blob("application/vnd.oci.image.index.v1+json", index.as_bytes());
    let foreign = platform("linux", "s390x");
    layout.name(index.clone(), Some("v1"));
    layout.name(foreign, Some("other"));
    assert_eq!(kernel(&layout, ""), format!("fc {kraft}"));
    assert_eq!(kernel(&layout, ":v1"), format!("fc {kraft}"));
    assert_eq!(
        kernel(&layout, &format!("@{}", index["digest"].as_str().unwrap())),
        format!("fc {kraft}")
    );
    assert_eq!(
        kernel(&layout, &format!("@{}", qemu["digest"].as_str().unwrap())),
        format!("qemu {kraft}")
    );
    let error = layout.error(":other");
    assert!(
        error.starts_with("no image in it is for ") && error.contains("it has :other (linux/s390x, @sha256:"),
        "{error}"
    );
}

#[test]
fn architecture_of_configuration_counts_without_one_in_the_index() {
    let foreign = Image {
        architecture: "riscv64",
        ..image("x")
    };
    let error = Layout::of(&foreign).error("");
    assert!(error.contains("it has (linux/riscv64, @sha256:"), "{error}");
}

#[test]
fn nested_indexes_are_limited() {
    let mut layout = Layout::new();
    let mut descriptor = layout.add(&image("x"));
    for _ in 0..5 {
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string();
        descriptor = layout.blob("application/vnd.oci.image.index.v1+json", index.as_bytes());
    }
    layout.name(descriptor, None);
    assert_eq!(
        layout.error(""),
        "it has more than 4 levels of indexes; use a smaller image"
    );
    let mut layout = Layout::new();
    let descriptor = layout.add(&image("x"));
    let index = json!({"schemaVersion": 2, "manifests": vec![descriptor; 1000]}).to_string();
    let index = layout.blob(INDEX, index.as_bytes());
    layout.name(index, None);
    assert_eq!(
        layout.error(""),
        "it has more than 1000 entries of indexes; use a smaller image"
    );
}

#[test]
fn json_of_all_blobs_is_limited() {
    let padding = " ".repeat(2 << 20);
    let mut layout = Layout::new();
    layout.name(layout.add(&image("x")), None);
    for number in 0..4 {
        let index = json!({"schemaVersion": 2, "manifests": [], "annotations": {"n": number.to_string()}});
        let index = layout.blob(INDEX, format!("{index}{padding}").as_bytes());
        layout.name(index, None);
        if number == 1 {
            assert_eq!(kernel(&layout, ""), "x");
        }
    }
    let error = layout.error("");
    assert!(
        error.contains("the indexes, manifests and configurations exceed 6 MiB in total"),
        "{error}"
    );
    // Manifests without a platform in the index, which are read for it.
    let mut layout = Layout::new();
    for number in 0..4 {
        let mut manifest = image("x");
        manifest.annotations["n"] = format!("{number}{padding}").into();
        layout.name(layout.add(&manifest), None);
    }
    assert!(layout.error("").contains("exceed 6 MiB in total"));
}

#[test]
fn digest_covers_annotations_and_platform() {
    let tar = Tar::new().file("kernel", "GOOD").file("evil", "EVIL").build();
    let good = Image {
        config: json!({"Labels": {BINARY: "/kernel"}, "Cmd": ["good"]}),
        ..Image::new(vec![LayerBlob::gzip(&tar)])
    };
    let mut layout = Layout::new();
    let evil = json!({BINARY: "/evil", "com.urunc.unikernel.cmdline": "evil"});
    let mut manifest = layout.add(&good);
    let plain = manifest.clone();
    manifest["annotations"] = evil.clone();
    manifest["platform"] = json!({"os": "xen", "architecture": native()});
    let index = json!({"schemaVersion": 2, "manifests": [manifest], "annotations": evil}).to_string();
    let mut index = layout.blob(INDEX, index.as_bytes());
    let index_digest = index["digest"].as_str().unwrap().to_owned();
    index["annotations"] = json!({"com.urunc.unikernel.initrd": "/evil"});
    layout.name(index, Some("v1"));
    assert!(layout.error("").starts_with("it is built for xen"));
    let suffix = format!("@{}", plain["digest"].as_str().unwrap());
    for suffix in [format!(":v1{suffix}"), suffix] {
        let files = layout.open(&suffix).unwrap();
        assert_eq!(files.kernel, b"GOOD");
        assert_eq!(files.command_line.as_deref(), Some("good"));
        assert_eq!(files.initrd, None);
    }
    // The digest of an index covers its entries.
    assert!(
        layout
            .error(&format!("@{index_digest}"))
            .starts_with("it is built for xen")
    );
}

#[test]
fn annotations_of_index_are_shared() {
    let mut layout = Layout::new();
    let descriptor = layout.add(&image("x"));
    let annotations: serde_json::Map<String, Value> = (0..10_000)
        .map(|number| (format!("{number}"), "".into()))
        .chain([("com.urunc.unikernel.cmdline".into(), "c".repeat(1 << 20).into())])
        .collect();
    let manifests = vec![descriptor; 900];
    let index = json!({"schemaVersion": 2, "manifests": manifests, "annotations": annotations});
    layout.name(layout.blob(INDEX, index.to_string().as_bytes()), None);
    let reference = Reference::parse(layout.image("").as_ref()).unwrap();
    let store = Store::open(&reference).unwrap();
    let selected = select(&store, &reference).unwrap();
    // One key, in one map for all entries, of which only the selected one is left.
    assert_eq!(selected.annotations.len(), 1);
    assert_eq!(selected.annotations[0].len(), 1);
    assert_eq!(std::rc::Rc::strong_count(&selected.annotations[0]), 1);
}

#[test]
fn long_tags_are_shortened_in_messages() {
    let mut layout = Layout::new();
    for kernel in ["one", "two"] {
        layout.name(layout.add(&image(kernel)), Some(&"ä".repeat(100_000)));
    }
    let error = layout.error("");
    assert!(
        error.starts_with("several images match") && error.len() < 1000,
        "{error}"
    );
}

#[test]
fn blob_of_two_types_is_refused() {
    let mut layout = Layout::new();
    let descriptor = layout.add(&image("one"));
    let path = layout.blob_path(descriptor["digest"].as_str().unwrap());
    let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for (key, value, media_type, expected) in [
        (
            "manifests",
            json!([descriptor]),
            MANIFEST,
            "it has the key \"manifests\"",
        ),
        (
            "mediaType",
            json!(INDEX),
            MANIFEST,
            "it states the media type \"application/vnd.oci.image.index",
        ),
        (
            "manifests",
            json!([descriptor]),
            INDEX,
            "it has the key \"layers\"",
        ),
        (
            "mediaType",
            json!(MANIFEST),
            INDEX,
            "it states the media type \"application/vnd.oci.image.manifest",
        ),
    ] {
        let mut both = manifest.clone();
        both[key] = value;
        let mut layout = Layout::new();
        layout.add(&image("one"));
        layout.name(layout.blob(media_type, both.to_string().as_bytes()), None);
        let error = layout.error("");
        assert!(error.contains(expected), "{error}");
    }
    let mut stated = manifest.clone();
    stated["mediaType"] = MANIFEST.into();
    layout = Layout::new();
    layout.add(&image("one"));
    layout.name(layout.blob(MANIFEST, stated.to_string().as_bytes()), None);
    assert_eq!(kernel(&layout, ""), "one");
    layout.directory.write("index.json", stated.to_string());
    assert!(
        layout
            .error("")
            .starts_with("cannot read the file index.json: it states the media type")
    );
}

#[test]
fn links_in_layout_are_not_followed() {
    let layout = Layout::of(&image("one"));
    let blobs = fs::read_dir(layout.directory.path("blobs/sha256")).unwrap();
    let mut paths: Vec<_> = blobs.map(|entry| entry.unwrap().path()).collect();
    paths.extend(["index.json", "oci-layout"].map(|name| layout.directory.path(name)));
    for path in paths {
        let other = layout.directory.path("other");
        fs::rename(&path, &other).unwrap();
        symlink(&other, &path).unwrap();
        let error = layout.error("");
        assert!(
            error.ends_with(": it is a symbolic link; replace it by the file"),
            "{error}"
        );
        fs::rename(&other, &path).unwrap();
    }
    assert_eq!(kernel(&layout, ""), "one");
}

#[test]
fn wrong_scheme_is_named() {
    let layout = Layout::of(&image("one"));
    let directory = layout.directory.text("");
    let error = |name: String| open_named(&name).err().unwrap();
    assert_eq!(
        error(format!("oci-archive:{directory}")),
        "the path names a directory; begin the name with oci: instead"
    );
    assert_eq!(
        error(format!("oci:{directory}index.json")),
        "the path names a file; begin the name with oci-archive: instead"
    );
}

#[test]
fn artifact_is_refused() {
    let mut layout = Layout::new();
    let config = layout.blob("application/vnd.oci.empty.v1+json", b"{}");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
    let manifest = layout.blob("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    layout.name(manifest, None);
    let error = layout.error("");
    assert!(
        error.contains("application/vnd.oci.empty.v1+json") && error.ends_with("use an image"),
        "{error}"
    );
}

#[test]
fn archive_has_the_same_images() {
    let layout = Layout::of(&image("one"));
    let directory = Directory::new();
    let path = directory.write("a.tar", layout.archive());
    let name = format!("oci-archive:{path}");
    assert_eq!(open_named(&name).unwrap().kernel, b"one");
    let bytes = layout.archive();
    // Within the content of the last member, before the two blocks of zeros.
    fs::write(&path, &bytes[..bytes.len() - 1024 - 511]).unwrap();
    let error = open_named(&name).err().unwrap();
    assert!(
        error.starts_with("cannot read the tar archive; copy it again: "),
        "{error}"
    );
    for (content, expected) in [
        (
            LayerBlob::gzip(&bytes).bytes,
            "it is gzip-compressed; unpack it with gunzip",
        ),
        (
            Tar::new().file("manifest.json", "[]").build(),
            "skopeo copy docker-archive:FILE",
        ),
        (
            b"text".repeat(200),
            "cannot read the tar archive; copy it again: ",
        ),
    ] {
        fs::write(&path, content).unwrap();
        let error = open_named(&name).err().unwrap();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn other_directories_and_versions_are_refused() {
    let layout = Layout::of(&image("one"));
    let version = |text: &str| {
        layout.directory.write("oci-layout", text);
        layout.error("")
    };
    assert!(version(r#"{"imageLayoutVersion":"2.0.0"}"#).starts_with("version \"2.0.0\" of the OCI layout"));
    assert!(version("{}").starts_with("version \"\" of the OCI layout"));
    assert!(version("x").starts_with("cannot read the file oci-layout: it is no valid JSON"));
    fs::remove_file(layout.directory.path("oci-layout")).unwrap();
    assert!(
        layout
            .error("")
            .starts_with("it has no oci-layout; make an OCI layout of it")
    );
    let fifo = Layout::of(&image("one"));
    fs::remove_file(fifo.directory.path("index.json")).unwrap();
    scratch::make_fifo(&fifo.directory.path("index.json"));
    assert!(fifo.error("").starts_with("cannot read the file index.json: "));
}
