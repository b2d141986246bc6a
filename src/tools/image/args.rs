//! Arguments of `mayfly-tools run`, which mayfly executes for `mayfly run oci:…`: the image, the position of the image in the arguments of
//! the user, the options among them that replace a part of the image, and the arguments themselves.

use std::ffi::{OsStr, OsString};

/// Arguments of the command.
#[derive(Debug, PartialEq, Eq)]
pub struct RunArgs {
    /// The image.
    pub image: OsString,
    /// Arguments of `mayfly run`.
    pub arguments: Vec<OsString>,
    /// Position of the image among them.
    pub position: usize,
    /// They have an initrd.
    pub has_initrd: bool,
    /// They have a drive.
    pub has_disk: bool,
    /// They have a command line.
    pub has_guest_arguments: bool,
}

/// Usage error.
#[derive(Debug, thiserror::Error)]
#[error("mayfly-tools run is a part of mayfly; run mayfly run IMAGE")]
pub struct ArgsError;

impl RunArgs {
    /// Parses the arguments after `run`.
    ///
    /// # Errors
    /// [`ArgsError`] if they are not those that mayfly passes.
    pub fn parse(mut arguments: Vec<OsString>) -> Result<Self, ArgsError> {
        if arguments.len() < 3 {
            return Err(ArgsError);
        }
        let rest = arguments.split_off(2);
        let [position, replaced] = arguments.try_into().map_err(|_| ArgsError)?;
        let position = position
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or(ArgsError)?;
        let image = rest.get::<usize>(position).cloned().ok_or(ArgsError)?;
        let has = |name: &str| {
            let mut names = replaced.to_str().unwrap_or_default().split(',');
            names.any(|each| OsStr::new(each) == name)
        };
        Ok(Self {
            image,
            position,
            has_initrd: has("initrd"),
            has_disk: has("disk"),
            has_guest_arguments: has("arguments"),
            arguments: rest,
        })
    }
}
