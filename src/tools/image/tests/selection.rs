//! Tags, digests, platforms, and containers of images.

use std::fs;

use scratch::Directory;
use serde_json::{Value, json};

use super::layout::{Image, LayerBlob, Layout, Tar, native, open_named};

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
    assert!(layout.error("").starts_with("it has more than "));
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
    assert!(error.starts_with("cannot read the tar archive: "), "{error}");
    for (content, expected) in [
        (
            LayerBlob::gzip(&bytes).bytes,
            "it is gzip-compressed; unpack it with gunzip",
        ),
        (
            Tar::new().file("manifest.json", "[]").build(),
            "skopeo copy docker-archive:FILE",
        ),
        (b"text".repeat(200), "cannot read the tar archive: "),
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
