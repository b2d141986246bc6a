//! Roles of the files of an image: limits, and places for their content.

use std::ffi::CString;

use super::limits::{MAX_INITRD, MAX_KERNEL, MAX_METADATA, MAX_UNPACKED};
use super::path;
use super::root::{Place, Wanted};

/// Maximum bytes of the name of a memfd, memfd_create(2).
const MAX_NAME: usize = 249;

/// Role of a file of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Kernel.
    Kernel,
    /// Initrd.
    Initrd,
    /// Image of a disk.
    Block,
    /// Metadata of urunc.
    Metadata,
}

impl Role {
    /// Returns the name of the role, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Block => "block image",
            Self::Metadata => "metadata",
        }
    }

    fn limit(self) -> u64 {
        match self {
            Self::Kernel => MAX_KERNEL,
            Self::Initrd => MAX_INITRD,
            Self::Block => MAX_UNPACKED,
            Self::Metadata => MAX_METADATA,
        }
    }
}

/// File of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// Normalized path.
    pub path: Vec<u8>,
    /// Index of the layer at which the search begins; `None` for the top layer.
    pub layer: Option<usize>,
}

/// Use of a file of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The content is required.
    Content,
    /// The size is required.
    Size,
    /// The user replaces the file.
    Nothing,
}

/// Parts of an image that a command uses, and places for the files.
pub struct Places<'a> {
    /// The image, as the user names it.
    pub image: &'a str,
    /// Use of the initrd.
    pub initrd: Use,
    /// Use of the block image.
    pub block: Use,
    /// The command line is required.
    pub has_command_line: bool,
}

impl Places<'_> {
    /// Returns the use of the file with `role`.
    pub fn usage(&self, role: Role) -> Use {
        match role {
            Role::Kernel | Role::Metadata => Use::Content,
            Role::Initrd => self.initrd,
            Role::Block => self.block,
        }
    }

    /// Returns `file` with its limit and the place for its content.
    pub fn wanted(&self, role: Role, file: &ImageFile) -> Wanted {
        Wanted {
            role: role.name(),
            path: file.path.clone(),
            layer: file.layer,
            limit: role.limit(),
            place: match role {
                Role::Kernel | Role::Metadata | Role::Initrd => Place::Memory(self.memory_name(&file.path)),
                Role::Block => Place::Disk,
            },
        }
    }

    /// Returns the name of a memfd: image and path, the end of a longer name. mayfly names the file so in its messages.
    fn memory_name(&self, path: &[u8]) -> CString {
        let (scheme, rest) = self.image.split_once(':').unwrap_or_default();
        let full = format!("{rest}{}", path::display(path));
        let length = MAX_NAME.saturating_sub(scheme.len() + 1);
        let mut start = full.len().saturating_sub(length);
        while !full.is_char_boundary(start) {
            start += 1;
        }
        CString::new(format!("{scheme}:{}", &full[start..])).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::{Places, Use};

    #[test]
    fn name_of_memfd_has_image_and_path() {
        let name = |image: &str| {
            let places = Places {
                image,
                initrd: Use::Content,
                block: Use::Content,
                has_command_line: true,
            };
            places.memory_name(b".boot/kernel").into_string().unwrap()
        };
        assert_eq!(name("oci:app:v1"), "oci:app:v1/.boot/kernel");
        let long = name(&format!("oci-archive:{}", "ä".repeat(200)));
        assert!(long.len() <= 249 && long.starts_with("oci-archive:ä") && long.ends_with("ä/.boot/kernel"));
    }
}
