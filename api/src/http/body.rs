//! Bodies, which come in pieces.

use std::str;

use super::head::Framing;
use super::limits::HttpLimits;
use super::line;
use super::refusal::RequestError;

/// Where in its body a request is.
#[derive(Debug)]
pub(super) struct Body {
    at: At,
    /// Bytes of trailers so far.
    trailers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// That many bytes of the body are to come, and they are the last.
    Rest(usize),
    /// Before the length of a chunk.
    Size,
    /// That many bytes of a chunk are to come.
    Chunk(usize),
    /// Before the end of the line that a chunk is.
    ChunkEnd,
    /// Among the lines after the last chunk.
    Trailers,
    /// Behind the body.
    End,
}

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        let at = match framing {
            Framing::Length(0) => At::End,
            Framing::Length(length) => At::Rest(length),
            Framing::Chunked => At::Size,
        };
        Self { at, trailers: 0 }
    }

    /// Whether all of it was taken.
    pub(super) fn is_complete(&self) -> bool {
        self.at == At::End
    }

    /// Moves from `input` to `content` what there is, and returns how many bytes of `input` that used up.
    ///
    /// # Errors
    /// [`RequestError::Large`] as soon as the body is announced to be longer than allowed; [`RequestError::Chunk`],
    /// [`RequestError::Long`] and [`RequestError::LineEnd`] for what are no chunks.
    pub(super) fn take(
        &mut self,
        input: &[u8],
        content: &mut Vec<u8>,
        limits: &HttpLimits,
    ) -> Result<usize, RequestError> {
        let mut used = 0;
        while let Some(step) = self.step(&input[used..], content, limits)? {
            used += step;
        }
        Ok(used)
    }

    /// One step of [`take`](Self::take), or nothing if there is none to take.
    fn step(
        &mut self,
        input: &[u8],
        content: &mut Vec<u8>,
        limits: &HttpLimits,
    ) -> Result<Option<usize>, RequestError> {
        match self.at {
            At::Rest(left) | At::Chunk(left) => {
                let count = left.min(input.len());
                if content.is_empty() && count > 0 {
                    content.reserve_exact(left);
                }
                content.extend_from_slice(&input[..count]);
                self.at = match (self.at, left - count) {
                    (At::Rest(_), 0) => At::End,
                    (At::Rest(_), left) => At::Rest(left),
                    (_, 0) => At::ChunkEnd,
                    (_, left) => At::Chunk(left),
                };
                Ok((count > 0).then_some(count))
            }
            At::End => Ok(None),
            At::Size | At::ChunkEnd | At::Trailers => {
                let Some(line) = line::first(input, limits.line)? else {
                    return Ok(None);
                };
                self.at = self.after(line, content.len(), limits)?;
                Ok(Some(line.len() + line::END))
            }
        }
    }

    /// What comes after a line that is between the chunks.
    fn after(&mut self, line: &[u8], length: usize, limits: &HttpLimits) -> Result<At, RequestError> {
        let wrong = || RequestError::Chunk(String::from_utf8_lossy(line).into_owned());
        match self.at {
            At::Size => {
                let size = chunk_size(line).ok_or_else(wrong)?;
                let limit = limits.body;
                let room = limit - length.min(limit);
                match usize::try_from(size) {
                    Ok(0) => Ok(At::Trailers),
                    Ok(size) if size <= room => Ok(At::Chunk(size)),
                    _ => {
                        let size = size.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
                        Err(RequestError::Large { size, limit })
                    }
                }
            }
            At::Trailers if !line.is_empty() => {
                // They are headers that nobody here asks for.
                self.trailers += line.len() + line::END;
                if self.trailers > limits.head {
                    let (part, limit) = ("trailer", limits.head);
                    return Err(RequestError::Long { part, limit });
                }
                is_field(line).then_some(At::Trailers).ok_or_else(wrong)
            }
            At::Trailers => Ok(At::End),
            _ => line.is_empty().then_some(At::Size).ok_or_else(wrong),
        }
    }
}

/// The number at the start of `line`, which is hexadecimal; extensions may follow it, RFC 9112 section 7.1.1.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let text = str::from_utf8(line).ok().filter(|text| is_printable(text))?;
    let digits = match text.split_once(';') {
        Some((digits, _)) => digits.trim_end_matches([' ', '\t']),
        None => text,
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Whether `line` is a name, a colon, and perhaps a value.
fn is_field(line: &[u8]) -> bool {
    let text = str::from_utf8(line).ok().filter(|text| is_printable(text));
    let name = text.and_then(|text| text.split_once(':'));
    name.is_some_and(|(name, _)| !name.is_empty() && !name.contains([' ', '\t']))
}

fn is_printable(text: &str) -> bool {
    text.chars()
        .all(|character| character == '\t' || !character.is_control())
}
