//! Paths in the root file system of an image: bytes without `.`, `..` and doubled slashes, and without a slash at either end.

use super::limits::MAX_PATH;

/// Returns `path` in the normal form.
///
/// # Errors
/// The reason why the path is refused.
pub fn normalize(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    if path.len() > MAX_PATH {
        return Err("the path is longer than 4096 bytes");
    }
    if path.contains(&0) {
        return Err("the path contains a NUL");
    }
    let mut parts = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("the path contains .., which may leave the root"),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

/// Returns the path to which the symbolic link at `link` with `target` leads, with `rest` appended. Returns none if the path leaves the
/// root.
pub fn follow(link: &[u8], target: &[u8], rest: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = match target.starts_with(b"/") {
        true => Vec::new(),
        false => parent(link)
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
            .collect(),
    };
    let further = target
        .split(|&byte| byte == b'/')
        .chain(rest.split(|&byte| byte == b'/'));
    for part in further {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    let path = parts.join(&b'/');
    (path.len() <= MAX_PATH).then_some(path)
}

/// Returns the path of the directory that contains `path`.
pub fn parent(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    &path[..slash.unwrap_or(0)]
}

/// Returns the last component of `path`.
pub fn file_name(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    &path[slash.map_or(0, |slash| slash + 1)..]
}

/// Returns the directories above `path` from the root downward, without the root, each with the rest of the path.
pub fn ancestors(path: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(index, _)| (&path[..index], &path[index + 1..]))
}

/// Returns `path` as text from the root, for messages.
pub fn display(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests {
    use super::{ancestors, file_name, follow, normalize, parent};

    #[test]
    fn paths_are_normalized() {
        for (path, expected) in [
            ("/a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("a/./b", "a/b"),
            ("", ""),
            ("./", ""),
        ] {
            assert_eq!(normalize(path.as_bytes()).unwrap(), expected.as_bytes(), "{path}");
        }
        for path in ["..", "../a", "a/../b", "/a/..", "a\0b", &"a/".repeat(3000)] {
            assert!(normalize(path.as_bytes()).is_err(), "{path}");
        }
    }

    #[test]
    fn links_are_followed_within_the_root() {
        for (link, target, rest, expected) in [
            ("boot/kernel", "vmlinuz", "", Some("boot/vmlinuz")),
            ("boot/kernel", "../k", "", Some("k")),
            ("boot/kernel", "/x/y", "", Some("x/y")),
            ("boot", "usr/boot", "kernel", Some("usr/boot/kernel")),
            ("boot", "..", "", None),
            ("boot/kernel", "../../etc/shadow", "", None),
            ("a", "/../b", "", None),
        ] {
            let found = follow(link.as_bytes(), target.as_bytes(), rest.as_bytes());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{link} {target}");
        }
    }

    #[test]
    fn components_are_found() {
        assert_eq!((parent(b"a/b/c"), file_name(b"a/b/c")), (&b"a/b"[..], &b"c"[..]));
        assert_eq!((parent(b"a"), file_name(b"a")), (&b""[..], &b"a"[..]));
        let all: Vec<_> = ancestors(b"a/b/c").collect();
        assert_eq!(all, [(&b"a"[..], &b"b/c"[..]), (b"a/b", b"c")]);
    }
}
