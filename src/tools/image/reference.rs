//! Reference to an image: `oci:LAYOUT[:TAG][@DIGEST]` or `oci-archive:FILE[:TAG][@DIGEST]`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::image::Digest;

use super::error::Error;

/// Container of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Directory of an OCI layout.
    Layout,
    /// Tar archive of an OCI layout.
    Archive,
}

/// Reference to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Container.
    pub container: Container,
    /// Path of the container.
    pub path: PathBuf,
    /// Tag: the annotation `org.opencontainers.image.ref.name` of its entry in the index.
    pub tag: Option<String>,
    /// Digest of the manifest or of an index.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses `text`. The longest path that exists is the container, because a path may contain colons.
    ///
    /// # Errors
    /// [`Error::Reference`], [`Error::Missing`], or [`Error::Open`] if a path cannot be examined.
    pub fn parse(text: &OsStr) -> Result<Self, Error> {
        Self::parse_with(text, |path| path.symlink_metadata().map(drop))
    }

    fn parse_with(text: &OsStr, examine: impl Fn(&Path) -> io::Result<()>) -> Result<Self, Error> {
        let bytes = text.as_bytes();
        let (container, rest) = match (bytes.strip_prefix(b"oci:"), bytes.strip_prefix(b"oci-archive:")) {
            (Some(rest), _) => (Container::Layout, rest),
            (_, Some(rest)) => (Container::Archive, rest),
            _ => return Err(Error::Reference("it does not begin with oci: or oci-archive:")),
        };
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        if rest.is_empty() {
            return Err(Error::Reference("the path is missing; append it"));
        }
        let exists = |path: &Path| match examine(path) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(source) => Err(Error::Open {
                path: path.to_owned(),
                source,
            }),
        };
        let whole = path(rest);
        if exists(&whole)? {
            return Ok(Self {
                container,
                path: whole,
                tag: None,
                digest: None,
            });
        }
        let (named, digest) = split_digest(rest)?;
        let ends = (0..named.len()).rev().filter(|&index| named[index] == b':');
        let candidates = std::iter::once(named.len()).chain(ends);
        let mut found = None;
        for end in candidates.filter(|&end| end > 0) {
            if exists(&path(&named[..end]))? {
                found = Some(end);
                break;
            }
        }
        let Some(end) = found else {
            // A colon in the last component is more often that of a tag.
            let last = named
                .iter()
                .rposition(|&byte| byte == b'/')
                .map_or(0, |slash| slash + 1);
            let colon = named[last..].iter().position(|&byte| byte == b':');
            let end = colon.map_or(named.len(), |colon| last + colon);
            return Err(Error::Missing {
                path: path(&named[..end]),
            });
        };
        let tag = named.get(end + 1..).map(parse_tag).transpose()?;
        Ok(Self {
            container,
            path: path(&named[..end]),
            tag,
            digest,
        })
    }
}

/// Returns true if `error` means that no file has the path. A path with a long tag is too long for a file.
fn is_absent(error: &io::Error) -> bool {
    let is_too_long = error.raw_os_error() == Some(libc::ENAMETOOLONG);
    is_too_long
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
}

/// Splits a digest off the end of `rest`. An @ with another text behind it belongs to the path or the tag.
fn split_digest(rest: &[u8]) -> Result<(&[u8], Option<Digest>), Error> {
    let mark = b"@sha256:";
    let Some(at) = rest.windows(mark.len()).rposition(|window| window == mark) else {
        return Ok((rest, None));
    };
    let digest = std::str::from_utf8(&rest[at + 1..])
        .ok()
        .and_then(|text| Digest::from_str(text).ok());
    match digest {
        Some(digest) => Ok((&rest[..at], Some(digest))),
        None => Err(Error::Reference(
            "the digest after @ is malformed; use @sha256: and 64 hexadecimal digits in lower case",
        )),
    }
}

fn parse_tag(tag: &[u8]) -> Result<String, Error> {
    let tag = std::str::from_utf8(tag).map_err(|_| Error::Reference("the tag is not UTF-8"))?;
    match tag.is_empty() {
        true => Err(Error::Reference(
            "the tag is empty; append it, or remove the colon",
        )),
        false => Ok(tag.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Container, Error, Reference};

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn parse(text: &str, existing: &[&str]) -> Result<Reference, Error> {
        Reference::parse_with(text.as_ref(), |path| {
            let is_denied = path.starts_with("denied");
            match existing.iter().any(|each| std::path::Path::new(each) == path) {
                _ if is_denied => Err(io::ErrorKind::PermissionDenied.into()),
                true => Ok(()),
                false => Err(io::ErrorKind::NotFound.into()),
            }
        })
    }

    fn parts(text: &str, existing: &[&str]) -> (String, Option<String>, bool) {
        let reference = parse(text, existing).unwrap();
        (
            reference.path.to_str().unwrap().to_owned(),
            reference.tag,
            reference.digest.is_some(),
        )
    }

    #[test]
    fn longest_existing_path_is_the_container() {
        let tag = |tag: &str| Some(tag.to_owned());
        for (text, existing, expected) in [
            ("oci:a", &["a"][..], ("a", None, false)),
            ("oci:a:b", &["a"], ("a", tag("b"), false)),
            ("oci:a:b", &["a", "a:b"], ("a:b", None, false)),
            ("oci:a:b:c", &["a:b"], ("a:b", tag("c"), false)),
            ("oci:d/a:r.io/x:v1", &["d/a"], ("d/a", tag("r.io/x:v1"), false)),
            ("oci:a@b", &["a@b"], ("a@b", None, false)),
            ("oci:x@y:v1", &["x@y"], ("x@y", tag("v1"), false)),
            ("oci-archive:a.tar:v", &["a.tar"], ("a.tar", tag("v"), false)),
        ] {
            let (path, tag, digest) = parts(text, existing);
            assert_eq!((path.as_str(), tag, digest), expected, "{text}");
        }
        let digest = format!("oci:a:v1@sha256:{HEX}");
        assert_eq!(parts(&digest, &["a"]), ("a".into(), tag("v1"), true));
        assert_eq!(
            parse("oci-archive:a", &["a"]).unwrap().container,
            Container::Archive
        );
    }

    #[test]
    fn long_tag_is_no_error() {
        let text = format!("oci:/proc:{}", "t".repeat(300));
        assert_eq!(
            Reference::parse(text.as_ref()).unwrap().tag,
            Some("t".repeat(300))
        );
    }

    #[test]
    fn malformed_reference_is_rejected() {
        for (text, part) in [
            ("oci:", "path is missing"),
            ("x:a", "does not begin"),
            ("oci:a:", "tag is empty"),
            ("oci:a@sha256:12", "digest after @ is malformed"),
            ("oci:dir.d/b:v1", "dir.d/b does not exist"),
            ("oci:no", "no does not exist"),
            ("oci:denied/a:v1", "cannot open denied/a:v1"),
        ] {
            let error = parse(text, &["a"]).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
