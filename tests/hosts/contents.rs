//! Files in an emulated host and in its Linux guest.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use crate::archive::Archive;
use crate::kind::{self, HostKind};

/// Released Firecracker, fetched by `make setup`.
const FIRECRACKER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/.cache/firecracker/1.12.1/firecracker"
);

/// Tools that create, check and read ext4 images.
const EXT4_TOOLS: [&str; 3] = ["mke2fs", "e2fsck", "debugfs"];
const LIBRARIES: [&str; 7] = [
    "libext2fs.so.2",
    "libe2p.so.2",
    "libcom_err.so.2",
    "libss.so.2",
    "libblkid.so.1",
    "libuuid.so.1",
    "libc.so.6",
];
/// Error of the assembly of the files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Cannot read a fetched file.
    #[error("cannot read {path:?}; run `make setup` to fetch it")]
    Fetched {
        /// The file.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// Cannot read a built file.
    #[error("cannot read {path:?}; run `{goal}` to build it")]
    Built {
        /// The goal of make.
        goal: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// Cannot write the archive.
    #[error("cannot write {path:?}")]
    Write {
        /// The archive.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
}

/// Writes the initramfs of a host of `kind`, with the list `scenarios`, to `path`.
pub fn write(kind: &HostKind, path: &Path, scenarios: &[String]) -> Result<(), Error> {
    let files = collect(kind, scenarios)?;
    pack(path, &files).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

type Files = Vec<(String, Vec<u8>)>;

fn collect(kind: &HostKind, scenarios: &[String]) -> Result<Files, Error> {
    let list: String = scenarios.iter().map(|name| format!("{name}\n")).collect();
    let busybox = read_fetched(kind, "busybox")?;
    let mut files = vec![
        ("init".to_owned(), include_bytes!("host-init.sh").to_vec()),
        ("scenarios".to_owned(), list.into_bytes()),
        (
            "bin/local-root".to_owned(),
            include_bytes!("local-root.sh").to_vec(),
        ),
        ("bin/mayfly".to_owned(), read_built(kind, &kind.mayfly())?),
        (
            "bin/mayfly-tools".to_owned(),
            read_built(kind, &kind.mayfly().with_file_name("mayfly-tools"))?,
        ),
        ("bin/scenarios".to_owned(), read_built(kind, &kind.scenarios())?),
        ("images/initrd".to_owned(), build_guest_initrd(kind, &busybox)?),
        ("bin/busybox".to_owned(), busybox),
    ];
    // Firecracker's release for x86_64 alone is compared. The floor of x86_64 is measured on real hosts.
    if *kind == kind::X86_64 {
        files.push(("bin/firecracker".to_owned(), read(FIRECRACKER.into())?));
    } else {
        files.push(("bin/floor".to_owned(), read_built(kind, &kind.floor())?));
    }
    for (name, path) in kind.local_programs() {
        files.push((name.to_owned(), read_built(kind, &path)?));
    }
    for module in kind.modules {
        let name = format!("modules/{module}.ko");
        files.push((name.clone(), read_fetched(kind, &name)?));
    }
    for image in kind.images {
        files.push((format!("images/{image}"), read_fetched(kind, image)?));
    }
    for tool in EXT4_TOOLS {
        files.push((
            format!("bin/{tool}"),
            read_fetched(kind, &format!("ext4/{tool}"))?,
        ));
    }
    for library in LIBRARIES {
        files.push((
            format!("lib/{library}"),
            read_fetched(kind, &format!("ext4/lib/{library}"))?,
        ));
    }
    let (directory, loader) = kind.loader;
    files.push((
        format!("{directory}/{loader}"),
        read_fetched(kind, &format!("ext4/lib/{loader}"))?,
    ));
    read_gdb(kind, &mut files)?;
    read_guests(kind, &kind.guests(), "guests", &mut files)?;
    Ok(files)
}

/// Adds gdb with libraries and a loader of its own: they may be of another version than those of the other tools.
fn read_gdb(kind: &HostKind, files: &mut Files) -> Result<(), Error> {
    let directory = kind.gdb();
    let unreadable = |source| Error::Fetched {
        path: directory.clone(),
        source,
    };
    for entry in fs::read_dir(&directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        files.push((format!("lib/gdb/{file}"), read(path.clone())?));
    }
    let (_, loader) = kind.loader;
    let start =
        format!("#!/bin/busybox sh\nexec /lib/gdb/{loader} --library-path /lib/gdb /lib/gdb/gdb \"$@\"\n");
    files.push(("bin/gdb".to_owned(), start.into_bytes()));
    Ok(())
}

/// Adds the test guests in `directory` as `name`. On aarch64 each memory map has a directory.
fn read_guests(kind: &HostKind, directory: &Path, name: &str, files: &mut Files) -> Result<(), Error> {
    let unreadable = |source| Error::Built {
        goal: kind.goal(),
        path: directory.to_owned(),
        source,
    };
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_file() {
            files.push((format!("{name}/{file}"), read_built(kind, &path)?));
        } else if !file.starts_with('.') {
            read_guests(kind, &path, &format!("{name}/{file}"), files)?;
        }
    }
    Ok(())
}

fn build_guest_initrd(kind: &HostKind, busybox: &[u8]) -> Result<Vec<u8>, Error> {
    let mut archive = Archive::new(Vec::new());
    for directory in ["bin", "dev", "mnt", "modules", "proc", "sys"] {
        archive.add_directory(directory).unwrap();
    }
    archive.add_file("init", include_bytes!("guest-init.sh")).unwrap();
    archive.add_file("bin/busybox", busybox).unwrap();
    archive
        .add_file("bin/virtio", include_bytes!("guest-virtio.sh"))
        .unwrap();
    let modules: String = kind
        .guest_modules
        .iter()
        .map(|name| format!("{name}\n"))
        .collect();
    archive.add_file("modules/list", modules.as_bytes()).unwrap();
    for module in kind.guest_modules {
        let name = format!("modules/{module}.ko");
        archive.add_file(&name, &read_fetched(kind, &name)?).unwrap();
    }
    Ok(archive.finish().unwrap())
}

fn pack(path: &Path, files: &Files) -> io::Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    for directory in [
        "bin",
        "dev",
        "guests",
        "guests/fc",
        "guests/virt",
        "images",
        "lib",
        "lib/gdb",
        "lib64",
        "modules",
        "proc",
        "sys",
        "tmp",
    ] {
        archive.add_directory(directory)?;
    }
    for (name, contents) in files {
        archive.add_file(name, contents)?;
    }
    archive.finish().map(drop)
}

fn read_fetched(kind: &HostKind, name: &str) -> Result<Vec<u8>, Error> {
    read(kind.fetched(name))
}

fn read(path: PathBuf) -> Result<Vec<u8>, Error> {
    fs::read(&path).map_err(|source| Error::Fetched { path, source })
}

fn read_built(kind: &HostKind, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Built {
        goal: kind.goal(),
        path: path.to_owned(),
        source,
    })
}
