//! Scripts that tests execute.

use std::path::Path;
use std::process::Command;

use crate::run;

/// Writes an executable file with `text` to `path`. Another process writes it: a child that another test starts has the descriptors of
/// this process until its `execve`, and the kernel executes no file that is open for writing (ETXTBSY).
///
/// # Panics
/// Panics if the write fails.
#[track_caller]
pub fn write_program(path: impl AsRef<Path>, text: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"", "sh", text]);
    let output = run(command.arg(path.as_ref()));
    assert!(output.status.success(), "{}: {output:?}", path.as_ref().display());
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::write_program;
    use crate::{Directory, run};

    #[test]
    fn program_is_executed() {
        let directory = Directory::new();
        let path = directory.path("a program");
        for text in ["#!/bin/sh\necho 'long %s \\n'\n", "#!/bin/sh\nexit 7\n"] {
            write_program(&path, text);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(run(&mut Command::new(path)).status.code(), Some(7));
    }
}
