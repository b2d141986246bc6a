//! The command line: arguments, help texts, and options in error messages.

pub mod args;
pub mod help;
pub mod hints;
