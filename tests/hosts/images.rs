//! Real images other than Linux, from Debian's packages, up to their first output.

use crate::guest::Guest;

scenarios! {
    instructions_beyond_general_registers => expect_exit("/guests/sse.elf", "ok sse");
    memtest86_by_the_bzimage_protocol => expect_texts("/images/memtest86+ -- console=ttyS0,115200", &["Memtest86+"]);
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

fn expect_exit(arguments: &str, text: &str) {
    let mut guest = Guest::start(arguments);
    guest.expect(text);
    guest.expect_exit(0);
}
