//! Sources of kernel, command line, initrd and block image.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::layout::{BINARY, Files, Image, LayerBlob, Layout, Tar};
use crate::image::args::RunArgs;
use crate::image::root::Content;
use crate::image::{Opened, arguments, open as open_image, open_sizes, places};
use crate::output::chain;

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

/// Returns the description of `mayfly inspect`.
fn describe(image: &Image) -> String {
    let layout = Layout::of(image);
    let name = layout.image("");
    open_sizes(name.as_ref(), &name).unwrap().1
}

/// Returns the source of the kernel.
fn source(files: &Files) -> &str {
    &files.opened.program.kernel.source
}

#[test]
fn annotations_of_urunc_name_the_files() {
    let image = Image {
        annotations: json!({
            BINARY: "/kernel",
            "com.urunc.unikernel.initrd": "rd",
            "com.urunc.unikernel.block": "/disk",
            "com.urunc.unikernel.hypervisor": "qemu",
        }),
        ..Image::new(vec![kernel_layer()])
    };
    let files = open(&image);
    assert_eq!(files.kernel, b"KERNEL");
    assert_eq!(files.initrd.as_deref(), Some(&b"INITRD"[..]));
    assert_eq!(files.block.as_deref(), Some(&b"DISK"[..]));
    assert_eq!(
        source(&files),
        "annotation com.urunc.unikernel.binary of the manifest"
    );
    let text = describe(&image);
    for line in [
        ": OCI image for linux/",
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
    assert!(
        error.starts_with("cannot parse urunc.json; make the image again: "),
        "{error}"
    );
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

/// Returns an image whose `urunc.json` has these values.
fn with_metadata(values: &Value, files: Tar) -> Image {
    let encoded = values.as_object().unwrap().iter().map(|(key, value)| {
        let value = STANDARD.encode(value.as_str().unwrap());
        (key.clone(), Value::from(value))
    });
    let metadata: serde_json::Map<_, _> = encoded.collect();
    let tar = files.file("urunc.json", Value::from(metadata).to_string());
    Image::new(vec![LayerBlob::gzip(&tar.build())])
}

/// A file at a conventional path has another role, limit and place than by the convention.
#[test]
fn file_at_conventional_path_has_role_of_metadata() {
    let block = json!({BINARY: "/k", "com.urunc.unikernel.block": "/.boot/rootfs"});
    let tar = || Tar::new().file("k", "KERNEL").file(".boot/rootfs", "DISK");
    let image = with_metadata(&block, tar());
    let files = open(&image);
    assert_eq!(files.block.as_deref(), Some(&b"DISK"[..]));
    assert_eq!(files.initrd, None);
    let block = &files.opened.block.as_ref().unwrap().file;
    let link = fs::read_link(format!("/proc/self/fd/{}", block.as_raw_fd())).unwrap();
    assert!(!link.to_str().unwrap().contains("memfd:"), "{link:?}");
    assert!(describe(&image).contains("disk         /.boot/rootfs, 4 bytes, "));
    let initrd = "/unikraft/bin/initrd";
    let kernel = json!({BINARY: initrd, "com.urunc.unikernel.initrd": initrd});
    let tar = || Tar::new().file("unikraft/bin/initrd", "BOTH");
    let image = with_metadata(&kernel, tar());
    let files = open(&image);
    assert_eq!(
        (&files.kernel[..], files.initrd.as_deref()),
        (&b"BOTH"[..], Some(&b"BOTH"[..]))
    );
    assert!(describe(&image).contains("kernel       /unikraft/bin/initrd, 4 bytes, "));
    // The limit is that of the kernel, which is 2 MiB in tests.
    let large = Tar::new().file("unikraft/bin/initrd", vec![1; 3 << 20]).build();
    let mut image = with_metadata(&json!({BINARY: initrd}), Tar::new());
    image.layers.push(LayerBlob::plain(&large));
    let error = Layout::of(&image).error("");
    assert!(error.contains("it has 3 MiB, and the limit is 2 MiB"), "{error}");
}

#[test]
fn size_of_unused_candidate_is_not_limited() {
    let mut image = with_metadata(&json!({BINARY: "/k"}), Tar::new().file("k", "KERNEL"));
    let large = Tar::new().file("unikraft/bin/kernel", vec![1; 3 << 20]);
    image.layers.push(LayerBlob::plain(&large.build()));
    assert_eq!(open(&image).kernel, b"KERNEL");
}

/// Returns the arguments of mayfly, with the content of each descriptor, and the descriptors of the disk and of the initrd.
fn arguments_of(image: &Image, replaced: &str) -> Result<(Vec<String>, Opened<Content>), String> {
    let layout = Layout::of(image);
    let words = ["1", replaced, "-v", &layout.image(""), "--", "user"];
    let args = RunArgs::parse(words.map(Into::into).to_vec()).unwrap();
    let name = layout.image("");
    let opened = open_image(name.as_ref(), &places(&args, &name), |root, wanted| {
        root.find(wanted)
    })
    .map_err(|error| chain(&error))?;
    let arguments = arguments(&args, &opened).map_err(|error| chain(&error))?;
    let read = |argument: OsString| {
        let argument = argument.into_string().unwrap();
        let (path, options) = argument.split_once(',').unwrap_or((&argument, ""));
        match path.starts_with("/proc/self/fd/") {
            true => format!("<{}>{options}", fs::read_to_string(path).unwrap()),
            false => argument,
        }
    };
    Ok((arguments.into_iter().map(read).collect(), opened))
}

fn with_all_parts(kernel: &str, initrd: &str, block: &str, command_line: &str) -> Image {
    Image {
        annotations: json!({
            BINARY: kernel,
            "com.urunc.unikernel.initrd": initrd,
            "com.urunc.unikernel.block": block,
            "com.urunc.unikernel.cmdline": command_line,
        }),
        ..Image::new(vec![kernel_layer()])
    }
}

#[test]
fn each_part_is_passed_unless_an_option_replaces_it() {
    for replaced in 0..8 {
        let names = ["initrd", "disk", "arguments"];
        let is_replaced = |index: usize| replaced >> index & 1 == 1;
        let list: Vec<_> = (0..3)
            .filter(|&index| is_replaced(index))
            .map(|index| names[index])
            .collect();
        // A replaced part may be missing or malformed.
        let part = |index, good| if is_replaced(index) { "../gone\n" } else { good };
        let image = with_all_parts("/kernel", part(0, "/rd"), part(1, "/disk"), part(2, "image"));
        let (found, _) = arguments_of(&image, &list.join(",")).unwrap();
        let mut expected = vec!["run"];
        let mut add = |index: usize, words: [&'static str; 2]| {
            if !is_replaced(index) {
                expected.extend(words);
            }
        };
        add(0, ["--initrd", "<INITRD>"]);
        add(1, ["--disk", "<DISK>ro,id=image"]);
        expected.extend(["-v", "<KERNEL>", "--", "user"]);
        if !is_replaced(2) {
            expected.extend(["--", "image"]);
        }
        assert_eq!(found, expected, "{list:?}");
    }
    for (image, expected) in [
        (
            with_all_parts("/no", "/rd", "/disk", ""),
            "cannot use the kernel /no: ",
        ),
        (
            with_all_parts("/kernel", "/no", "/disk", ""),
            "cannot use the initrd /no: ",
        ),
        (
            with_all_parts("/kernel", "/rd", "/no", ""),
            "cannot use the block image /no: ",
        ),
    ] {
        let error = arguments_of(&image, "").err().unwrap();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn passed_files_are_not_writable() {
    let (_, opened) = arguments_of(&with_all_parts("/kernel", "/rd", "/disk", ""), "").unwrap();
    for content in [opened.kernel, opened.initrd.unwrap(), opened.block.unwrap()] {
        assert!(content.file.write_at(b"x", 0).is_err() && content.file.set_len(0).is_err());
    }
}

#[test]
fn unusable_command_line_is_refused_unless_user_replaces_it() {
    for (command_line, expected) in [
        (
            "a\nb".to_owned(),
            " has control characters; append -- with another one",
        ),
        (
            "x".repeat(200_000),
            " has 200000 bytes, and the limit is 4096; append -- with a shorter one",
        ),
    ] {
        let image = with_all_parts("/kernel", "", "", &command_line);
        let error = arguments_of(&image, "").err().unwrap();
        assert!(error.ends_with(expected), "{error}");
        assert!(arguments_of(&image, "arguments").is_ok());
    }
}

#[test]
fn mounted_root_file_system_is_refused_unless_user_gives_one() {
    for key in ["mountRootfs", "useDMBlock"] {
        let image = Image {
            annotations: json!({BINARY: "/kernel", format!("com.urunc.unikernel.{key}"): "TRUE"}),
            ..Image::new(vec![kernel_layer()])
        };
        let error = arguments_of(&image, "arguments").err().unwrap();
        assert!(
            error.starts_with(&format!(
                "its guest mounts the root file system of the image ({key})"
            )),
            "{error}"
        );
        assert!(describe(&image).contains("mayfly run fails without --initrd or --disk: "));
        for replaced in ["initrd", "disk", "initrd,disk"] {
            assert!(arguments_of(&image, replaced).is_ok(), "{replaced}");
        }
    }
}
