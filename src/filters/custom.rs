//! Filters of `--seccomp-filter`: a file of Firecracker's seccompiler-bin.
//!
//! The file is a map from names of threads to programs, in the format of the crate bincode: each length is a number of 8 bytes, each
//! instruction one too, all little-endian.

use std::io;
use std::path::{Path, PathBuf};
use std::{fs, str};

use libc::sock_filter;

/// Names in the file, in the order of `ThreadRole`, and true for those that the file must have. `vmm` and `vcpu` are Firecracker's.
pub const NAMES: [(&str, bool); 5] = [
    ("start", false),
    ("vmm", true),
    ("vcpu", true),
    ("worker", false),
    ("console", false),
];

/// Maximum number of instructions of a program, `BPF_MAXINSNS`.
const MAX_INSTRUCTIONS: u64 = 4096;

/// Maximum size of a file in bytes: more than all programs.
const MAX_SIZE: u64 = 1 << 20;

/// Reason why a file of filters cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the seccomp filters of {}: {problem}; create the file by seccompiler-bin", path.display())]
pub struct Error {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Read(io::Error),
    #[error("it has more than {MAX_SIZE} bytes")]
    Large,
    #[error("it is no map of programs")]
    Format,
    #[error("it has no filter {0:?}")]
    Missing(&'static str),
}

/// Reads the programs at `path`. A role that is not in the file has an empty program.
///
/// # Errors
/// [`Error`]
pub fn read(path: &Path) -> Result<[&'static [sock_filter]; NAMES.len()], Error> {
    let failed = |problem| Error {
        path: path.to_owned(),
        problem,
    };
    let size = fs::metadata(path)
        .map_err(|error| failed(Problem::Read(error)))?
        .len();
    if size > MAX_SIZE {
        return Err(failed(Problem::Large));
    }
    let bytes = fs::read(path).map_err(|error| failed(Problem::Read(error)))?;
    parse(&bytes).map_err(failed)
}

fn parse(bytes: &[u8]) -> Result<[&'static [sock_filter]; NAMES.len()], Problem> {
    let mut programs = [None; NAMES.len()];
    let mut rest = bytes;
    for _ in 0..take_number(&mut rest)? {
        let length = take_number(&mut rest)?;
        let name = str::from_utf8(take(&mut rest, length)?).map_err(|_| Problem::Format)?;
        let length = take_number(&mut rest)?;
        if length > MAX_INSTRUCTIONS {
            return Err(Problem::Format);
        }
        let mut program = Vec::new();
        for _ in 0..length {
            program.push(instruction(take_number(&mut rest)?));
        }
        if let Some(role) = NAMES.iter().position(|(role, _)| *role == name) {
            // For the rest of the process.
            programs[role] = Some(&*program.leak());
        }
    }
    if !rest.is_empty() {
        return Err(Problem::Format);
    }
    for (program, (name, is_required)) in programs.iter().zip(NAMES) {
        if is_required && program.is_none_or(<[sock_filter]>::is_empty) {
            return Err(Problem::Missing(name));
        }
    }
    Ok(programs.map(Option::unwrap_or_default))
}

/// Takes `length` bytes from the start of `rest`.
fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], Problem> {
    let length = usize::try_from(length).map_err(|_| Problem::Format)?;
    let (taken, left) = rest.split_at_checked(length).ok_or(Problem::Format)?;
    *rest = left;
    Ok(taken)
}

fn take_number(rest: &mut &[u8]) -> Result<u64, Problem> {
    let (bytes, left) = rest.split_first_chunk().ok_or(Problem::Format)?;
    *rest = left;
    Ok(u64::from_le_bytes(*bytes))
}

/// Returns the instruction of 8 bytes, in the layout of `struct sock_filter`.
fn instruction(number: u64) -> sock_filter {
    let [code0, code1, jt, jf, k @ ..] = number.to_le_bytes();
    sock_filter {
        code: u16::from_le_bytes([code0, code1]),
        jt,
        jf,
        k: u32::from_le_bytes(k),
    }
}

#[cfg(test)]
mod tests {
    use super::{Problem, parse};

    /// Appends a program with one instruction, which allows all calls.
    fn push(file: &mut Vec<u8>, name: &str) {
        file.extend((name.len() as u64).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(1_u64.to_le_bytes());
        file.extend(0x7fff_0000_0000_0006_u64.to_le_bytes());
    }

    fn file(names: &[&str]) -> Vec<u8> {
        let mut file = (names.len() as u64).to_le_bytes().to_vec();
        names.iter().for_each(|name| push(&mut file, name));
        file
    }

    #[test]
    fn programs_of_firecrackers_names_are_read() {
        let programs = parse(&file(&["api", "vcpu", "vmm"])).unwrap();
        assert_eq!(programs.map(<[_]>::len), [0, 1, 1, 0, 0]);
        let instruction = programs[1][0];
        assert_eq!((instruction.code, instruction.k), (6, 0x7fff_0000));
    }

    #[test]
    fn incomplete_or_longer_file_is_rejected() {
        let complete = file(&["vcpu", "vmm"]);
        for length in 0..complete.len() {
            assert!(
                matches!(parse(&complete[..length]), Err(Problem::Format)),
                "{length}"
            );
        }
        let longer = [&*complete, &[0]].concat();
        assert!(matches!(parse(&longer), Err(Problem::Format)));
        let huge = [&u64::MAX.to_le_bytes()[..], &[0; 8]].concat();
        assert!(matches!(parse(&huge), Err(Problem::Format)));
    }

    #[test]
    fn missing_role_is_named() {
        let error = parse(&file(&["vmm", "api"])).unwrap_err();
        assert_eq!(error.to_string(), "it has no filter \"vcpu\"");
    }
}
