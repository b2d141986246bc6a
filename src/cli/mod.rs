//! The command line: arguments, help texts, and `mayfly ctl`.

pub mod args;
pub mod ctl;
pub mod help;
