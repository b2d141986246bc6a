//! The command line: arguments, help texts, options in error messages, and `mayfly ctl`.

pub mod args;
pub mod ctl;
pub mod help;
pub mod hints;
