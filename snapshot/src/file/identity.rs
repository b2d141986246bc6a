//! Identity of a file, independent of its names.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device and inode of a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// Returns the identity of the file of `metadata`, or `None` if that is no regular file.
    pub fn of(metadata: &Metadata) -> Option<Self> {
        metadata.is_file().then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Returns the identity of the file to which `path` leads, or `None` if there is no regular file.
    pub fn at(path: &Path) -> Option<Self> {
        Self::of(&fs::metadata(path).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use scratch::Directory;

    use super::FileIdentity;

    #[test]
    fn identity_belongs_to_file_under_all_names() {
        let directory = Directory::new();
        let [path, link, hard, other] = ["state", "link", "hard", "other"].map(|name| directory.path(name));
        fs::write(&path, "same").unwrap();
        fs::write(&other, "same").unwrap();
        symlink(&path, &link).unwrap();
        fs::hard_link(&path, &hard).unwrap();
        let identity = FileIdentity::at(&path).unwrap();
        assert_eq!(FileIdentity::at(&link), Some(identity));
        assert_eq!(FileIdentity::at(&hard), Some(identity));
        assert_ne!(FileIdentity::at(&other).unwrap(), identity);
        assert_eq!(FileIdentity::of(&fs::symlink_metadata(&link).unwrap()), None);
        for path in [
            directory.root(),
            Path::new("/dev/null"),
            &directory.path("missing"),
        ] {
            assert_eq!(FileIdentity::at(path), None, "{path:?}");
        }
    }
}
