//! Lines as HTTP has them.

use super::refusal::RequestError;

/// Carriage return and line feed.
pub(super) const END: usize = 2;

/// The line at the start of `input` without its end, or nothing if its end has not come.
///
/// # Errors
/// [`RequestError::Long`] for more than `limit` bytes; [`RequestError::LineEnd`] for a line feed on its own, which others take
/// for the end of a line and others do not, so that the two see different requests.
pub(super) fn first(input: &[u8], limit: usize) -> Result<Option<&[u8]>, RequestError> {
    let longest = limit.saturating_add(END);
    let window = &input[..input.len().min(longest)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => window[..end]
            .strip_suffix(b"\r")
            .map(Some)
            .ok_or(RequestError::LineEnd),
        None if window.len() == longest => {
            let part = "line";
            Err(RequestError::Long { part, limit })
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_be_as_long_as_the_limit_and_no_longer() {
        assert_eq!(first(b"abcd\r\nx", 4).unwrap(), Some(&b"abcd"[..]));
        assert_eq!(first(b"abcd\r", 4).unwrap(), None);
        assert!(matches!(
            first(b"abcde\r\n", 4),
            Err(RequestError::Long {
                part: "line",
                limit: 4
            })
        ));
        assert!(matches!(first(b"abcdef", 4), Err(RequestError::Long { .. })));
    }

    #[test]
    fn a_line_feed_alone_ends_nothing() {
        assert!(matches!(first(b"ab\ncd\r\n", 9), Err(RequestError::LineEnd)));
        assert!(matches!(first(b"\n", 9), Err(RequestError::LineEnd)));
        assert_eq!(first(b"\r\n", 9).unwrap(), Some(&b""[..]));
    }
}
