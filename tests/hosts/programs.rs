//! The test guests of resources/guests, on an architecture that nothing emulates but the host under it.

use crate::guest::Guest;

scenarios! {
    hello => prints("/guests/hello.elf", "hello from mayfly", 0);
}

fn prints(arguments: &str, text: &str, code: i32) {
    let mut guest = Guest::start(arguments);
    guest.expect(text);
    guest.ends_with(code);
}
