//! Failures of the steps.

use std::error;
use std::io;
use std::path::PathBuf;

use crate::sys;

/// A failed step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a path failed.
    #[error("cannot {operation} {}", .path.display())]
    Path {
        /// Verb and object of the step.
        operation: &'static str,
        /// Path of the object.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A system call without a path failed.
    #[error("cannot {operation}")]
    Call {
        /// Verb and object of the step.
        operation: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A check before the steps failed.
    #[error("cannot {operation} {}: {reason}", .path.display())]
    Check {
        /// Verb and object of the step.
        operation: &'static str,
        /// Path of the object.
        path: PathBuf,
        /// Cause and way out.
        reason: String,
    },
    /// A setting of a cgroup cannot be applied on this host.
    #[error("cannot apply --cgroup {setting}: {reason}")]
    Cgroup {
        /// The setting, as the command line has it.
        setting: String,
        /// Cause and way out.
        reason: String,
    },
    /// The host has no cgroup hierarchy of the version.
    #[error(
        "cannot use cgroups: no file system of cgroup version {version} is mounted; mount it, or use --cgroup-version {other}"
    )]
    NoHierarchy {
        /// The version.
        version: u8,
        /// The other version.
        other: u8,
    },
    /// The process that becomes the VMM ended without a message.
    #[error(
        "cannot start the VMM: its process was killed; look for the OOM killer in the kernel log, and at the limits of its cgroup"
    )]
    Killed,
    /// A child process failed. The text is its complete message.
    #[error("{0}")]
    Child(String),
}

impl Error {
    /// Returns a conversion of the error of `operation` on `path`.
    pub fn path(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path {
            operation,
            path,
            source,
        }
    }

    /// Returns a conversion of the error of `operation`.
    pub fn call(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Call { operation, source }
    }

    /// Returns the message with its causes and the way out in one line.
    pub fn describe(&self) -> String {
        match self.way_out() {
            Some(way_out) => format!("{}; {way_out}", self.chain()),
            None => self.chain(),
        }
    }

    /// Returns the message with its causes in one line, without control characters of paths.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text.replace(|c: char| c.is_control(), "?")
    }

    /// Returns the way out where the error of the system call has a usual cause.
    fn way_out(&self) -> Option<&'static str> {
        let (Self::Path {
            operation, source, ..
        }
        | Self::Call { operation, source }) = self
        else {
            return None;
        };
        match source.raw_os_error()? {
            libc::EPERM | libc::EACCES if !sys::is_root() => Some("run mayfly-jailer as root"),
            libc::ENOENT if operation.contains("directory of all jails") => {
                Some("create it, or choose another --chroot-base-dir")
            }
            libc::EPERM if operation.starts_with("set the limit") => {
                Some("give the jailer CAP_SYS_RESOURCE, or a hard limit that is at least as high (ulimit -H)")
            }
            libc::EPERM => Some("the container or security module of the jailer forbids it; permit it there"),
            libc::EMFILE => Some("raise the limit of open files of the jailer (ulimit -n)"),
            libc::ENOSPC => Some("free space on this file system"),
            libc::EROFS if operation.contains("cgroup") => Some("mount the cgroups of this host writable"),
            libc::EROFS => Some("choose another --chroot-base-dir"),
            _ => None,
        }
    }
}
