//! The other end of the guest's serial port.

use std::path::PathBuf;
use std::str::FromStr;

/// The other end of the guest's serial port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SerialTarget {
    /// Stdin and stdout of the process.
    #[default]
    Stdio,
    /// File or FIFO for the output. There is no input.
    File(PathBuf),
    /// Unix socket, which clients connect to.
    Unix(PathBuf),
    /// Pseudoterminal, which a program opens.
    Pty,
}

impl FromStr for SerialTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "pty" => Ok(Self::Pty),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err("expected stdio, unix:PATH, pty or file:PATH"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SerialTarget;

    #[test]
    fn targets_are_parsed() {
        for (text, expected) in [
            ("stdio", Some(SerialTarget::Stdio)),
            ("pty", Some(SerialTarget::Pty)),
            ("unix:/run/a:b", Some(SerialTarget::Unix("/run/a:b".into()))),
            ("file:out.log", Some(SerialTarget::File("out.log".into()))),
            ("", None),
            ("unix:", None),
            ("file:", None),
            ("pty:", None),
            ("/run/console", None),
            ("Stdio", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
