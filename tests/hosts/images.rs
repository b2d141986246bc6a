//! Real images other than Linux, from Debian's packages, up to their first output, and Linux from an OCI image.

use std::fs;

use scratch::Directory;

use crate::guest::Guest;
use crate::layout::write_kraft;

scenarios! {
    instructions_beyond_general_registers => expect_exit("/guests/sse.elf", "ok sse");
    memtest86_by_the_bzimage_protocol => expect_texts("/images/memtest86+ -- console=ttyS0,115200", &["Memtest86+"]);
    linux_of_oci_image => boot_oci_image();
    xen_by_multiboot => expect_texts(
        "/images/xen --protocol multiboot -- com1=115200,8n1 console=com1",
        &["Xen version 4.17", "Command line: com1=115200,8n1 console=com1"],
    );
}

fn expect_texts(arguments: &str, texts: &[&str]) {
    let mut guest = Guest::start(arguments);
    for text in texts {
        guest.expect(text);
    }
    guest.terminate();
}

/// Boots Linux with an initrd and a command line of an OCI image, to its prompt.
fn boot_oci_image() {
    let directory = Directory::new();
    let [kernel, initrd] = ["/images/vmlinuz", "/images/initrd"].map(|path| fs::read(path).unwrap());
    write_kraft(
        &directory,
        &kernel,
        &initrd,
        &["console=ttyS0", "quiet", "panic=-1"],
    );
    let mut guest = Guest::start(&format!("oci:{} --memory 256M", directory.text("app")));
    guest.expect("prompt> ");
    guest.type_line("reboot -f");
    guest.expect_exit(0);
}

fn expect_exit(arguments: &str, text: &str) {
    let mut guest = Guest::start(arguments);
    guest.expect(text);
    guest.expect_exit(0);
}
