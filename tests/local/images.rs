//! Images of OCI layouts: made by this test, or by umoci and skopeo.

use std::fs;
use std::process::{Command, Output, Stdio};

use scratch::{Directory, Requirement};
use serde_json::json;

use crate::guests::{file, program};
use crate::layout::{self, architecture, write_layout};

/// Exit status after an error of KVM.
const FAULT: i32 = 121;

fn mayfly(directory: &Directory, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .current_dir(directory.root())
        .stdin(Stdio::null());
    scratch::run(&mut command)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs an image with `options`. Returns the output of the guest, which ends with success.
fn run(directory: &Directory, arguments: &[&str]) -> String {
    let output = mayfly(directory, &[&["run", "--memory", "32M"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stderr(&output), "");
    stdout(&output)
}

/// Runs `tool` in `directory`.
fn tool(directory: &Directory, line: &str) {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).current_dir(directory.root());
    let output = scratch::run(&mut command);
    assert!(output.status.success(), "{line}: {output:?}");
}

/// Writes a layout `app` whose image boots the guest `name` by the conventions of urunc.
fn write_urunc(directory: &Directory, name: &str) {
    let kernel = fs::read(file(name)).unwrap();
    let annotations = json!({
        "com.urunc.unikernel.binary": "/.boot/kernel",
        "com.urunc.unikernel.cmdline": "from the image",
    });
    write_layout(
        directory,
        &[(".boot/kernel", &kernel, json!({}))],
        &annotations,
        &json!({}),
    );
}

/// Writes a layout `app` whose image boots `initrd.elf` with an initrd of 5,000 bytes by the conventions of Kraft.
fn write_kraft(directory: &Directory) {
    let kernel = fs::read(file("initrd.elf")).unwrap();
    layout::write_kraft(directory, &kernel, &[1; 5000], &["--", "x"]);
}

#[test]
fn guest_arguments_replace_command_line_of_image() {
    let directory = Directory::new();
    write_urunc(&directory, "cmdline.elf");
    assert!(run(&directory, &["oci:app"]).starts_with("[from the image]"));
    assert!(run(&directory, &["oci:app", "--", "a  -- b"]).starts_with("[a  -- b]"));
    assert!(run(&directory, &["oci:app", "--"]).starts_with("[]"));
}

#[test]
fn initrd_of_image_is_loaded_unless_option_replaces_it() {
    let directory = Directory::new();
    write_kraft(&directory);
    assert!(run(&directory, &["oci:app"]).contains("ok initrd 5000 bytes"));
    let other = directory.write("other", [2; 6000]);
    assert!(run(&directory, &["oci:app", "--initrd", &other]).contains("ok initrd 6000 bytes"));
}

/// Returns the pattern of `disk.elf`, which it expects on a read-only drive.
fn pattern(sectors: u64) -> Vec<u8> {
    let bytes = (0..sectors).flat_map(|sector| {
        // The guest reads 4 sectors from each place, and counts from the first of them.
        let (first, offset) = (sector - sector % 4, sector % 4 * 512);
        (0..512).map(move |byte| {
            let index = offset + byte;
            (first * 31 + index + (index >> 8)).to_le_bytes()[0]
        })
    });
    bytes.collect()
}

#[test]
fn disk_of_image_is_read_only_unless_option_replaces_it() {
    let directory = Directory::new();
    let kernel = fs::read(file("disk.elf")).unwrap();
    let disk = pattern(64);
    let annotations = json!({
        "com.urunc.unikernel.binary": "/kernel",
        "com.urunc.unikernel.block": "/disk.img",
        "com.urunc.unikernel.cmdline": " ",
    });
    let files = [
        ("kernel", &kernel[..], json!({})),
        ("disk.img", &disk[..], json!({})),
    ];
    write_layout(&directory, &files, &annotations, &json!({}));
    let text = run(&directory, &["oci:app"]);
    assert!(
        text.contains(" ro") && text.contains("ok disk 64 sectors"),
        "{text}"
    );
    let other = directory.write("other", vec![0; 32 * 512]);
    let text = run(&directory, &["--disk", &other, "oci:app"]);
    assert!(
        !text.contains(" ro") && text.contains("ok disk 32 sectors"),
        "{text}"
    );
}

#[test]
fn crash_of_image_has_functions() {
    let directory = Directory::new();
    write_urunc(&directory, "crash.elf");
    fs::create_dir(directory.path("crashes")).unwrap();
    let arguments = [
        "run",
        "oci:app",
        "--memory",
        "16M",
        "--core-on-crash",
        "crashes",
        "--",
        "mmio=1",
    ];
    let output = mayfly(&directory, &arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(FAULT), "{text}");
    for function in ["third+0x", "second+0x", "first+0x", "guest+0x"] {
        assert!(text.contains(function), "{text}");
    }
    let text = stdout(&mayfly(&directory, &["snapshot-info", "crashes"]));
    assert!(text.contains("kernel       oci:app/.boot/kernel\n"), "{text}");
    let output = mayfly(&directory, &["restore", "crashes"]);
    assert_eq!(output.status.code(), Some(FAULT), "{output:?}");
    assert!(stderr(&output).contains("no symbols were found"), "{output:?}");
}

#[test]
fn unusable_kernel_has_the_name_of_the_image() {
    let directory = Directory::new();
    let files = [(".boot/kernel", &b"#!/bin/sh\n"[..], json!({}))];
    write_layout(&directory, &files, &json!({}), &json!({}));
    for command in ["run", "inspect"] {
        let output = mayfly(&directory, &[command, "oci:app"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(
            stderr(&output),
            "mayfly: cannot load oci:app/.boot/kernel as an image of a kernel or unikernel: the file is a script; use the kernel that \
             it starts\n"
        );
    }
}

#[test]
fn file_with_name_of_image_is_reached_by_path() {
    let directory = Directory::new();
    fs::copy(file("cmdline.elf"), directory.path("oci:app")).unwrap();
    assert!(run(&directory, &["./oci:app", "--", "x"]).starts_with("[x]"));
    let output = mayfly(&directory, &["inspect", "./oci:app"]);
    assert!(stdout(&output).starts_with("./oci:app: 64-bit ELF"), "{output:?}");
}

#[test]
fn image_is_described() {
    let directory = Directory::new();
    write_kraft(&directory);
    let output = mayfly(&directory, &["inspect", "oci:app"]);
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    for line in [
        &format!("oci:app: OCI image for fc/{}, 2 layers of ", architecture()),
        "\n  manifest     sha256:",
        "\n  kernel       /unikraft/bin/kernel, ",
        " bytes, by the annotation org.unikraft.kernel.image of layer 1\n",
        "\n  command line \"-- x\", by the Cmd of the configuration\n",
        "\n  initrd       /unikraft/bin/initrd, 5000 bytes, by the annotation org.unikraft.kernel.initrd of layer 2\n",
        "\n  disk         none\n",
        "\noci:app/unikraft/bin/kernel: 64-bit ELF for ",
        "\nmayfly run boots the image by protocol linux",
    ] {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
}

#[test]
fn forged_image_is_refused() {
    let directory = Directory::new();
    write_urunc(&directory, "cmdline.elf");
    for entry in fs::read_dir(directory.path("app/blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        // The kernel is in the largest blob, the layer.
        if bytes.len() > 4096 {
            bytes[4096] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let output = mayfly(&directory, &["run", "oci:app"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(stdout(&output), "");
    let text = stderr(&output);
    assert!(
        text.starts_with("mayfly: cannot use the OCI image oci:app: cannot read layer 1 of 1 (sha256:")
            && text.ends_with(": it is damaged or forged; copy the image again\n"),
        "{text}"
    );
}

/// Makes the layouts `app` and `zstd`, and the archive `app.tar`.
fn make_images(directory: &Directory) {
    fs::create_dir(directory.path("boot")).unwrap();
    fs::copy(file("cmdline.elf"), directory.path("boot/kernel")).unwrap();
    tool(directory, "umoci init --layout app");
    tool(directory, "umoci new --image app:v1");
    tool(directory, "umoci insert --image app:v1 boot /.boot");
    tool(
        directory,
        &format!("umoci config --image app:v1 --architecture {}", architecture()),
    );
    tool(
        directory,
        "umoci config --image app:v1 --config.entrypoint hello --config.cmd world \
         --manifest.annotation com.urunc.unikernel.unikernelType=unikraft \
         --manifest.annotation com.urunc.unikernel.hypervisor=firecracker \
         --manifest.annotation com.urunc.unikernel.binary=/.boot/kernel",
    );
    tool(directory, "skopeo copy --quiet oci:app:v1 oci-archive:app.tar:v1");
    tool(
        directory,
        "skopeo copy --quiet --dest-compress --dest-compress-format zstd oci:app:v1 oci:zstd:v1",
    );
    tool(directory, "umoci tag --image app:v1 v2");
    tool(directory, "umoci config --image app:v2 --config.cmd moon");
    // A label, and no annotation.
    tool(directory, "umoci new --image app:label");
    tool(directory, "umoci insert --image app:label boot /k");
    tool(
        directory,
        &format!(
            "umoci config --image app:label --architecture {} --config.label com.urunc.unikernel.binary=k/kernel",
            architecture()
        ),
    );
}

#[test]
fn images_of_umoci_and_skopeo_run() {
    if !scratch::require(Requirement::OciTools) {
        return;
    }
    let directory = Directory::new();
    make_images(&directory);
    for (image, command_line) in [
        ("oci:app:v1", "[hello world]"),
        ("oci-archive:app.tar", "[hello world]"),
        ("oci-archive:app.tar:v1", "[hello world]"),
        ("oci:zstd", "[hello world]"),
        ("oci:app:v2", "[hello moon]"),
        ("oci:app:label", "[]"),
    ] {
        let text = run(&directory, &[image]);
        assert!(text.starts_with(command_line), "{image}: {text}");
    }
    let output = mayfly(&directory, &["run", "oci:app"]);
    let text = stderr(&output);
    assert!(
        text.contains(": several images match; append the tag or the digest of one: :"),
        "{text}"
    );
    // A whiteout in an upper layer.
    tool(&directory, "umoci insert --image app:v2 --whiteout /.boot");
    let text = stderr(&mayfly(&directory, &["run", "oci:app:v2"]));
    assert!(
        text.contains(": cannot use the kernel /.boot/kernel: layer 2 ("),
        "{text}"
    );
    assert!(
        text.ends_with(") removes it by a whiteout; make the image again without it\n"),
        "{text}"
    );
}
