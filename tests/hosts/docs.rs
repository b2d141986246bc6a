//! The commands in the documentation that need Debian's images.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;

use crate::guest::Guest;
use crate::pages::{PAGES, Treatment, blocks, commands};

scenarios! {
    commands_on_debian_images => run_all();
}

/// Paths on a Debian host, and the images there. Other images are in the working directory.
const LINKS: [(&str, &str); 3] = [
    ("/vmlinuz", "/images/vmlinuz"),
    ("/initrd.img", "/images/initrd"),
    ("/boot/memtest86+x64.bin", "/images/memtest86+"),
];
/// Output of each image, by the end of its path.
const OUTPUT: [(&str, &str); 4] = [
    ("vmlinuz", "prompt> "),
    ("vmlinux", "prompt> "),
    ("memtest86+x64.bin", "Memtest86+"),
    ("xen", "Xen version 4.17"),
];

/// Starts each `mayfly run` of the blocks for this host, until the image prints its line.
fn run_all() {
    fs::create_dir_all("/boot").unwrap();
    for (path, image) in LINKS {
        symlink(image, path).unwrap();
    }
    env::set_current_dir("/images").unwrap();
    let mut count = 0;
    for (name, page) in PAGES {
        let blocks = blocks(name, page);
        let code = blocks
            .iter()
            .filter(|block| block.treatment == Treatment::EmulatedHost)
            .map(|block| block.code.as_str());
        for words in commands(&code.collect::<String>()) {
            assert_eq!(words[..2], ["mayfly", "run"], "{name}: {words:?}");
            let output = OUTPUT.iter().find(|(image, _)| words[2].ends_with(image));
            let mut guest = Guest::start(&words[2..].join(" "));
            guest.expect(output.unwrap().1);
            guest.terminate();
            count += 1;
        }
    }
    assert!(count >= 4, "only {count} commands were found");
}
