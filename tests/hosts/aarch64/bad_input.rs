//! Input that an aarch64 machine rejects: the message names operation, value, cause and way out.

use std::fs;
use std::path::Path;
use std::process::Output;

use scratch::Temporary;
use snapshot::file;

use crate::guest::{Guest, mayfly_command};

const SOCKET: &str = "/tmp/api";
const DIRECTORY: &str = "/tmp/snapshot";
const SHELL: &str = "/tmp/shell";

/// Exit statuses of mayfly.
const FAILURE: i32 = 1;
const USAGE: i32 = 2;

mod gic2 {
    #[test]
    fn gic_and_vcpus_of_gicv3_are_rejected() {
        let name = concat!(module_path!(), "::gic_and_vcpus_of_gicv3_are_rejected");
        crate::host::run(name, super::check_gicv2_host);
    }
}

mod gic3 {
    #[test]
    fn gic_and_vcpus_are_rejected() {
        let name = concat!(module_path!(), "::gic_and_vcpus_are_rejected");
        crate::host::run(name, super::check_gicv3_host);
    }

    #[test]
    fn options_of_x86_64_are_rejected() {
        let name = concat!(module_path!(), "::options_of_x86_64_are_rejected");
        crate::host::run(name, super::check_options);
    }

    #[test]
    fn requests_of_x86_64_are_rejected() {
        let name = concat!(module_path!(), "::requests_of_x86_64_are_rejected");
        crate::host::run(name, super::check_requests);
    }

    #[test]
    fn images_are_rejected() {
        let name = concat!(module_path!(), "::images_are_rejected");
        crate::host::run(name, super::check_images);
    }

    #[test]
    fn snapshot_of_other_map_is_rejected() {
        let name = concat!(module_path!(), "::snapshot_of_other_map_is_rejected");
        crate::host::run(name, super::check_maps);
    }
}

/// Expects that mayfly with `arguments`, split at spaces, fails with `code` and each of `texts`.
fn expect_error(arguments: &str, code: i32, texts: &[&str]) {
    let Output { status, stderr, .. } = scratch::run(mayfly_command().args(arguments.split_whitespace()));
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(code), "{arguments}: {stderr}");
    for text in texts {
        assert!(
            stderr.contains(text),
            "{arguments} printed no {text:?}:\n{stderr}"
        );
    }
}

fn check_gicv2_host() {
    let hello = "run /guests/virt/hello.elf";
    let unsupported =
        "cannot create a GICv3: this host supports only GICv2; use that, and an image that supports it";
    expect_error(&format!("{hello} --gic 3"), FAILURE, &[unsupported]);
    // KVM has the limit of its GIC.
    let many = "cannot create 9 vCPUs: KVM on this host allows 8; configure fewer (--cpus 8)";
    for options in ["--cpus 9", "--cpus 9 --gic 2"] {
        expect_error(&format!("{hello} {options}"), FAILURE, &[many]);
    }
    create_snapshot("virt");
    check_snapshot_of_other_gic(unsupported);
}

fn check_gicv3_host() {
    let hello = "run /guests/virt/hello.elf";
    let unsupported =
        "cannot create a GICv2: this host supports only GICv3; use that, and an image that supports it";
    expect_error(&format!("{hello} --gic 2"), FAILURE, &[unsupported]);
    let many = "cannot create 9 vCPUs with a GICv2, which has at most 8; use fewer, or a GICv3";
    expect_error(&format!("{hello} --gic 2 --cpus 9"), FAILURE, &[many]);
    create_snapshot("virt");
    check_snapshot_of_other_gic(unsupported);
}

fn create_snapshot(map: &str) {
    let mut guest = Guest::start(&format!(
        "/guests/{map}/echo.elf --memory 64M --api-sock {SOCKET}"
    ));
    guest.expect("ready");
    let command = ["snapshot", DIRECTORY, "--api-sock", SOCKET];
    let Output { status, stderr, .. } = scratch::run(mayfly_command().args(command));
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    guest.terminate();
}

/// Changes the version of the GIC in the snapshot, and expects `message` of a load.
fn check_snapshot_of_other_gic(message: &str) {
    const SCHEMA: &[u8] = b"aarch64-settings";
    let path = format!("{DIRECTORY}/state");
    let state = file::read(Path::new(&path), None).unwrap();
    let mut sections = state.sections().to_vec();
    let name = sections.windows(SCHEMA.len()).position(|window| window == SCHEMA);
    // Version of the schema and length precede the payload, whose first byte is the variant.
    let variant = &mut sections[name.unwrap() + SCHEMA.len() + 8];
    *variant = 1 - *variant;
    file::write_bytes(Path::new(&path), state.header(), &sections).unwrap();
    expect_error(&format!("restore {DIRECTORY}"), FAILURE, &[message]);
    fs::remove_dir_all(DIRECTORY).unwrap();
}

fn check_options() {
    for option in [
        "--irqchip split",
        "--irqchip kernel",
        "--no-acpi",
        "--no-mptable",
        "--no-device-arguments",
    ] {
        let name = option.split(' ').next().unwrap();
        let message =
            format!("{name} is an option of x86_64 machines, and this machine is aarch64; remove it");
        expect_error(&format!("run /guests/fc/hello.elf {option}"), USAGE, &[&message]);
    }
    for protocol in ["pvh", "multiboot"] {
        let option = format!("run /guests/fc/hello.elf --protocol {protocol}");
        expect_error(&option, FAILURE, &["the protocol is defined for x86 only"]);
    }
}

fn check_requests() {
    let mut guest = Guest::start(&format!("/guests/fc/echo.elf --memory 64M --api-sock {SOCKET}"));
    guest.expect("ready");
    let body = r#"{"action_type":"SendCtrlAltDel"}"#;
    expect_fault(
        "PUT",
        "/actions",
        body,
        "SendCtrlAltDel does not supported on aarch64.",
    );
    // The guest has got nothing.
    guest.type_line("q");
    guest.expect("bye");
    guest.expect_exit(0);
    let server = Guest::launch(&format!("--api-sock {SOCKET}"));
    scratch::wait_until("the API socket", || Path::new(SOCKET).exists());
    expect_fault(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":2,"mem_size_mib":64,"smt":true}"#,
        "Enabling simultaneous multithreading is not supported on aarch64.",
    );
    for template in ["T2", "V1N1"] {
        let body = format!(r#"{{"vcpu_count":1,"mem_size_mib":64,"cpu_template":"{template}"}}"#);
        expect_fault(
            "PUT",
            "/machine-config",
            &body,
            "CPU templates are not part of mayfly",
        );
    }
    expect_fault("PUT", "/cpu-config", "{}", "CPU configuration is");
    server.terminate();
}

/// Expects that the API rejects a request with `message`.
fn expect_fault(method: &str, path: &str, body: &str, message: &str) {
    let request = ["ctl", "--api-sock", SOCKET, "request", method, path, body];
    let Output {
        status,
        stdout,
        stderr,
    } = scratch::run(mayfly_command().args(request));
    let text = [stdout, stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        !status.success() && text.contains(message),
        "{path} {body}: {text}"
    );
}

/// Returns hello.elf of map virt with `bytes` at `offset`.
fn image_with(offset: usize, bytes: &[u8]) -> Temporary {
    let mut image = fs::read("/guests/virt/hello.elf").unwrap();
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    Temporary::with(&image)
}

/// Returns hello.elf of map virt with its segments at `start` and on.
fn image_at(start: u64) -> Temporary {
    let mut image = fs::read("/guests/virt/hello.elf").unwrap();
    let number = |image: &[u8], at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    let headers = usize::try_from(number(&image, 32)).unwrap();
    let count = usize::from(u16::from_le_bytes([image[56], image[57]]));
    let addresses: Vec<usize> = (0..count).map(|index| headers + 56 * index + 24).collect();
    let loads = |at: &usize| image[at - 24] == 1;
    let lowest = addresses
        .iter()
        .filter(|at| loads(at))
        .map(|at| number(&image, *at))
        .min();
    for at in addresses {
        let moved = number(&image, at)
            .wrapping_sub(lowest.unwrap())
            .wrapping_add(start);
        image[at..at + 8].copy_from_slice(&moved.to_le_bytes());
    }
    Temporary::with(&image)
}

fn check_images() {
    for (image, texts) in [
        // e_machine: x86_64, RISC-V.
        (
            image_with(18, &[62, 0]),
            &[
                "the image is built for x86_64 (e_machine 62)",
                "build it for aarch64",
            ][..],
        ),
        (
            image_with(18, &[243, 0]),
            &["e_machine 243", "build it for aarch64"],
        ),
        // EI_DATA: big-endian.
        (
            image_with(5, &[2]),
            &["ELF byte order 2 is unsupported", "build the image little-endian"],
        ),
        (
            image_at(0x10_0000),
            &[
                "the image is linked at 0x100000, outside memory of both memory maps",
                "link it for one of them",
            ],
        ),
        (
            image_at(0x4000_0000),
            &[
                "covers the device tree at 0x40000000..0x40010000",
                "link it at 0x40010000 or above",
            ],
        ),
        (image_at(0x1_0000_0000), &["guest memory is too small", "suffice"]),
    ] {
        expect_error(&format!("run {}", image.path().display()), FAILURE, texts);
    }
    let forced = ["memory map fc has memory from 0x80000000"];
    expect_error("run /guests/virt/hello.elf --machine fc", FAILURE, &forced);
}

/// A shell has the map of its shape: it cannot load a snapshot of the other map.
fn check_maps() {
    create_snapshot("virt");
    let shell = Guest::launch(&format!("shell {SHELL} --for {DIRECTORY}"));
    scratch::wait_until("the socket of the shell", || Path::new(SHELL).exists());
    fs::remove_dir_all(DIRECTORY).unwrap();
    create_snapshot("fc");
    let texts = ["its address layout: virt 2, that of the snapshot: fc 2"];
    expect_error(&format!("restore --shell {SHELL} {DIRECTORY}"), FAILURE, &texts);
    shell.terminate();
    fs::remove_dir_all(DIRECTORY).unwrap();
}
