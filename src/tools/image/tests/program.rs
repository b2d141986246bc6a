//! Sources of kernel, command line, initrd and block image.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::layout::{BINARY, Files, Image, LayerBlob, Layout, Tar};
use crate::image::describe;

fn kernel_layer() -> LayerBlob {
    LayerBlob::gzip(
        &Tar::new()
            .file("kernel", "KERNEL")
            .file("rd", "INITRD")
            .file("disk", "DISK")
            .build(),
    )
}

fn open(image: &Image) -> Files {
    Layout::of(image).open("").unwrap()
}

/// Returns the source of the kernel.
fn source(files: &Files) -> &str {
    &files.opened.program.kernel.source
}

#[test]
fn annotations_of_urunc_name_the_files() {
    let files = open(&Image {
        annotations: json!({
            BINARY: "/kernel",
            "com.urunc.unikernel.initrd": "rd",
            "com.urunc.unikernel.block": "/disk",
            "com.urunc.unikernel.hypervisor": "qemu",
        }),
        ..Image::new(vec![kernel_layer()])
    });
    assert_eq!(files.kernel, b"KERNEL");
    assert_eq!(files.initrd.as_deref(), Some(&b"INITRD"[..]));
    assert_eq!(files.block.as_deref(), Some(&b"DISK"[..]));
    assert_eq!(
        source(&files),
        "annotation com.urunc.unikernel.binary of the manifest"
    );
    let text = describe("oci:a", &files.opened);
    for line in [
        "oci:a: OCI image for linux/",
        "kernel       /kernel, 6 bytes, by the annotation com.urunc.unikernel.binary of the manifest",
        "initrd       /rd, 6 bytes, by the annotation com.urunc.unikernel.initrd of the manifest",
        "disk         /disk, 4 bytes, by the annotation com.urunc.unikernel.block of the manifest",
        "command line none",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn labels_of_configuration_name_the_kernel() {
    let files = open(&Image {
        config: json!({"Labels": {BINARY: "/kernel"}}),
        ..Image::new(vec![kernel_layer()])
    });
    assert_eq!(
        source(&files),
        "label com.urunc.unikernel.binary of the configuration"
    );
    // An annotation precedes the label.
    let files = open(&Image {
        config: json!({"Labels": {BINARY: "/missing"}}),
        ..Image::with_kernel(vec![kernel_layer()])
    });
    assert_eq!(files.kernel, b"KERNEL");
}

#[test]
fn metadata_file_names_the_files() {
    let layer = |metadata: Value| {
        let tar = Tar::new()
            .file("boot/k", "KERNEL")
            .file("urunc.json", metadata.to_string());
        vec![LayerBlob::zstd(&tar.build())]
    };
    let encoded = |text: &str| STANDARD.encode(text);
    let files = open(&Image::new(layer(json!({
        BINARY: encoded("/boot/k"),
        "com.urunc.unikernel.cmdline": format!("b64:{}", encoded("a b")),
        "com.urunc.unikernel.hypervisor": "firecracker",
        "com.urunc.unikernel.initrd": "",
    }))));
    assert_eq!(files.kernel, b"KERNEL");
    assert_eq!(files.command_line.as_deref(), Some("a b"));
    assert_eq!(source(&files), "com.urunc.unikernel.binary of /urunc.json");
    let error = Layout::of(&Image::new(vec![LayerBlob::plain(
        &Tar::new().file("urunc.json", "[1]").build(),
    )]))
    .error("");
    assert!(error.starts_with("cannot parse urunc.json: "), "{error}");
}

#[test]
fn layers_of_kraft_hold_kernel_and_initrd() {
    let layer = |name: &str, content: &str, annotation: &str| {
        let annotations = json!({annotation: format!("/{name}")});
        LayerBlob::plain(&Tar::new().file(name, content).build()).annotated(annotations)
    };
    // The layer with debug information is not read.
    let mut debug = layer("unikraft/bin/kernel.dbg", "DEBUG", "org.unikraft.kernel.imagedbg");
    debug.diff_id = format!("sha256:{}", "0".repeat(64));
    let mut image = Image {
        config: json!({"Entrypoint": ["/unikraft/bin/kernel"], "Cmd": ["-c", "x"]}),
        os: "fc",
        ..Image::new(vec![
            layer("unikraft/bin/kernel", "KERNEL", "org.unikraft.kernel.image"),
            layer("unikraft/bin/initrd", "INITRD", "org.unikraft.kernel.initrd"),
            debug,
        ])
    };
    let files = open(&image);
    assert_eq!(
        (&files.kernel[..], files.initrd.as_deref()),
        (&b"KERNEL"[..], Some(&b"INITRD"[..]))
    );
    assert_eq!(files.command_line.as_deref(), Some("-c x"));
    assert_eq!(source(&files), "annotation org.unikraft.kernel.image of layer 1");
    image.layers.truncate(2);
    for (layer, media_type) in image.layers.iter_mut().zip(["kernel", "initrd"]) {
        layer.annotations = json!({});
        layer.media_type = format!("application/vnd.unikraft.{media_type}.v1");
    }
    let files = open(&image);
    assert_eq!(
        source(&files),
        "media type application/vnd.unikraft.kernel.v1 of layer 1"
    );
    assert_eq!(files.initrd.as_deref(), Some(&b"INITRD"[..]));
}

#[test]
fn conventional_paths_are_the_last_choice() {
    for (kernel, initrd, expected) in [
        (
            "unikraft/bin/kernel",
            "unikraft/bin/initrd",
            "convention of Kraft",
        ),
        (".boot/kernel", ".boot/rootfs", "convention of bunny"),
    ] {
        let tar = Tar::new().file(kernel, "KERNEL").file(initrd, "INITRD").build();
        let files = open(&Image::new(vec![LayerBlob::gzip(&tar)]));
        assert_eq!(
            (&files.kernel[..], files.initrd.as_deref()),
            (&b"KERNEL"[..], Some(&b"INITRD"[..]))
        );
        assert_eq!(source(&files), expected);
        let tar = Tar::new().file(kernel, "KERNEL").build();
        assert_eq!(open(&Image::new(vec![LayerBlob::gzip(&tar)])).initrd, None);
    }
    let error = Layout::of(&Image::new(vec![kernel_layer()])).error("");
    assert!(
        error.starts_with("it names no kernel: ")
            && error.contains("/urunc.json, /unikraft/bin/kernel, /.boot/kernel"),
        "{error}"
    );
}

#[test]
fn command_line_is_annotation_or_process_arguments() {
    let command_line = |annotation: &str, config: Value| {
        open(&Image {
            annotations: json!({BINARY: "/kernel", "com.urunc.unikernel.cmdline": annotation}),
            config,
            ..Image::new(vec![kernel_layer()])
        })
        .command_line
    };
    let both = json!({"Entrypoint": ["e", "f"], "Cmd": ["c"]});
    assert_eq!(
        command_line("a  [ b ]", both.clone()).as_deref(),
        Some("a  [ b ]")
    );
    assert_eq!(command_line("", both).as_deref(), Some("e f c"));
    assert_eq!(
        command_line("", json!({"Cmd": null, "Entrypoint": ["e"]})).as_deref(),
        Some("e")
    );
    assert_eq!(command_line("", json!({})), None);
    let error = Layout::of(&Image {
        config: json!({"Cmd": ["a\nb"]}),
        ..Image::with_kernel(vec![kernel_layer()])
    })
    .error("");
    assert!(
        error.contains("(Cmd of the configuration) has control characters"),
        "{error}"
    );
}

#[test]
fn images_for_other_monitors_are_refused() {
    for monitor in ["hvt", "spt", "hyperlight"] {
        let annotations = json!({BINARY: "/kernel", "com.urunc.unikernel.hypervisor": monitor});
        let image = Image {
            annotations,
            ..Image::new(vec![kernel_layer()])
        };
        let error = Layout::of(&image).error("");
        assert!(
            error.starts_with(&format!("it is built for {monitor}")),
            "{error}"
        );
    }
    let image = Image {
        os: "xen",
        ..Image::with_kernel(vec![kernel_layer()])
    };
    assert!(Layout::of(&image).error("").starts_with("it is built for xen"));
}

#[test]
fn mounted_root_file_system_is_named() {
    let annotations =
        |more: &str| json!({BINARY: "/kernel", "com.urunc.unikernel.mountRootfs": "true", more: "/rd"});
    let mounts_root = |more: &str| {
        let image = Image {
            annotations: annotations(more),
            ..Image::new(vec![kernel_layer()])
        };
        open(&image).opened.program.mounts_root
    };
    assert_eq!(mounts_root("other"), Some("mountRootfs"));
    assert_eq!(mounts_root("com.urunc.unikernel.initrd"), None);
}

#[test]
fn path_outside_the_root_is_refused() {
    for (path, expected) in [
        ("../../etc/passwd", "leaves the root file system of the image"),
        ("/", "leaves the root file system of the image"),
        ("a/../../b", "leaves the root file system of the image"),
        ("a\nb", "the path has control characters"),
    ] {
        let image = Image {
            annotations: json!({BINARY: path}),
            ..Image::new(vec![kernel_layer()])
        };
        let error = Layout::of(&image).error("");
        assert!(error.contains(expected), "{path}: {error}");
    }
}
