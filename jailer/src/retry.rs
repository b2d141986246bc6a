//! Repetition of a step that another jailer disturbs.

use std::io;

use crate::error::Error;

/// Attempts to create directories: another jailer with the same parents that undoes its own steps may remove one meanwhile.
const ATTEMPTS: u32 = 20;

/// Calls `create` until it fails by no missing directory, a limited number of times. `reset` follows each such failure.
pub fn create<S, T>(
    state: &mut S,
    reset: impl Fn(&mut S),
    create: impl Fn(&mut S) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match create(state) {
            Err(Error::Path { source, .. })
                if source.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS =>
            {
                reset(state);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{ATTEMPTS, Error, create};

    fn failure(kind: io::ErrorKind) -> Error {
        Error::path("create", "a")(kind.into())
    }

    #[test]
    fn missing_directory_is_repeated_with_a_limit() {
        let (mut count, missing) = ((0, 0), || Err(failure(io::ErrorKind::NotFound)));
        let add = |count: &mut (u32, u32)| count.1 += 1;
        let result = create(&mut count, add, |count| {
            count.0 += 1;
            if count.0 == 3 { Ok(count.1) } else { missing() }
        });
        assert!(matches!(result, Ok(2)));
        let result: Result<u32, _> = create(&mut count, add, |_| missing());
        assert!(result.is_err());
        assert_eq!(count.1, 2 + ATTEMPTS - 1);
    }

    #[test]
    fn other_failure_is_not_repeated() {
        let mut count = 0;
        let result: Result<(), _> = create(
            &mut count,
            |count| *count += 1,
            |_| Err(failure(io::ErrorKind::PermissionDenied)),
        );
        assert!(result.is_err() && count == 0);
    }
}
