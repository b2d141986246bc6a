//! Real images other than Linux, from Debian's packages, up to their first words.

use crate::guest::Guest;

scenarios! {
    instructions_beyond_general_registers => ends("/guests/sse.elf", "ok sse");
    memtest86_by_the_bzimage_protocol => says("/images/memtest86+ -- console=ttyS0,115200", &["Memtest86+"]);
    xen_by_multiboot => says(
        "/images/xen --protocol multiboot -- com1=115200,8n1 console=com1",
        &["Xen version 4.17", "Command line: com1=115200,8n1 console=com1"],
    );
}

fn says(arguments: &str, texts: &[&str]) {
    let mut guest = Guest::start(arguments);
    for text in texts {
        guest.expect(text);
    }
    guest.terminate();
}

fn ends(arguments: &str, text: &str) {
    let mut guest = Guest::start(arguments);
    guest.expect(text);
    guest.ends_with(0);
}
