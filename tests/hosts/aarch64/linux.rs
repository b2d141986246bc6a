//! Debian's unmodified arm64 Linux kernel as the guest, up to a working prompt, with a drive and an interface. It takes some 20 s to boot.

use super::{Map, VIRT};
use crate::guest::{Guest, TIMEOUT};
use crate::virtio::{
    IMAGE, configure_tap, create_image, create_tap, md5sum, read_file, remove_tap, run_e2fsck, run_task,
    serve_connection,
};

scenarios_on_each_map! {
    prompt_with_drive_and_interface => check_devices;
}

/// On the host with a GICv3 alone.
#[test]
fn two_cpus() {
    crate::host::run(concat!(module_path!(), "::two_cpus"), || check_cpus(VIRT));
}

/// Boots Linux up to its prompt. Returns its report of the machine.
fn boot(map: Map, options: &str) -> (Guest, String) {
    let mut guest = Guest::start(&format!(
        "/images/vmlinuz --machine {} --initrd /images/initrd {options} -- console={} quiet panic=-1",
        map.name, map.console
    ));
    guest.expect("linux: ");
    let report = guest.expect(" end");
    guest.expect("prompt> ");
    (guest, report)
}

fn check_cpus(map: Map) {
    let (mut guest, report) = boot(map, "--memory 256M --cpus 2");
    assert!(report.contains("cpus=2 "), "Linux reports {report}");
    guest.type_line("reboot -f");
    guest.expect_exit(0);
}

/// Checks that the image holds the guest's files in a consistent file system, and that packets pass each way.
fn check_devices(map: Map) {
    create_image(&[]);
    create_tap();
    let options = format!("--memory 256M --disk {IMAGE} --net tap:tap0,mac=02:00:00:00:77:02");
    let (mut guest, report) = boot(map, &options);
    assert!(
        report.contains("cpus=1 ") && report.contains("clock=arch_sys_counter "),
        "Linux reports {report}"
    );
    guest.type_line("echo hello-$((6*7))");
    guest.expect("hello-42");
    configure_tap();
    let sum = run_task(&mut guest, "fill 1 10");
    assert_eq!(run_task(&mut guest, "interface"), "02:00:00:00:77:02");
    let received = serve_connection(5001, |mut stream| {
        let mut bytes = Vec::new();
        std::io::copy(&mut stream, &mut bytes).map(|_| bytes)
    });
    let sent = run_task(&mut guest, "send 1");
    let bytes = received.recv_timeout(TIMEOUT).unwrap().unwrap();
    assert_eq!((bytes.len(), md5sum(&bytes)), (1 << 20, sent));
    guest.type_line("poweroff -f");
    guest.expect_exit(0);
    remove_tap();
    let (code, output) = run_e2fsck(&["-f", "-n"]);
    assert_eq!(code, 0, "e2fsck: {output}");
    assert_eq!(md5sum(&read_file("large")), sum);
}
