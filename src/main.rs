//! The command line of mayfly.

fn main() {}
