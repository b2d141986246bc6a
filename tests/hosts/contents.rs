//! Files in the emulated host and in its Linux guest.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use crate::archive::Archive;

/// Kernel, modules and images, fetched by `make setup`.
const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/hosts/x86_64-2");
/// Test guests, built by `make build`.
const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/guests/x86_64");

/// Released Firecracker, fetched by `make setup`.
const FIRECRACKER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/.cache/firecracker/1.12.1/firecracker"
);

/// Images that run as guests.
const IMAGES: [&str; 4] = ["vmlinuz", "vmlinux", "memtest86+", "xen"];
const MODULES: [&str; 4] = ["irqbypass.ko", "kvm.ko", "kvm-amd.ko", "tun.ko"];
/// Modules of the Linux guest, in the order of guest-init.sh.
const GUEST_MODULES: [&str; 7] = [
    "virtio_ring.ko",
    "virtio.ko",
    "virtio_mmio.ko",
    "virtio_blk.ko",
    "failover.ko",
    "net_failover.ko",
    "virtio_net.ko",
];
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
/// ELF interpreter of the tools.
const LOADER: &str = "ld-linux-x86-64.so.2";

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
    #[error("cannot read {path:?}; run `make build` to build it")]
    Built {
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

/// Returns the path of the host's kernel.
pub fn kernel() -> PathBuf {
    Path::new(FETCHED).join("vmlinuz")
}

/// Writes the host's initramfs, with the list `scenarios`, to `path`.
pub fn write(path: &Path, scenarios: &[String]) -> Result<(), Error> {
    let files = collect(scenarios)?;
    pack(path, &files).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

type Files = Vec<(String, Vec<u8>)>;

fn collect(scenarios: &[String]) -> Result<Files, Error> {
    let mayfly = env::var_os("MAYFLY").unwrap_or_else(|| env!("CARGO_BIN_EXE_mayfly").into());
    let this_program = env::current_exe().unwrap_or_default();
    let list: String = scenarios.iter().map(|name| format!("{name}\n")).collect();
    let busybox = read_fetched("busybox")?;
    let mut files = vec![
        ("init".to_owned(), include_bytes!("host-init.sh").to_vec()),
        ("scenarios".to_owned(), list.into_bytes()),
        ("bin/mayfly".to_owned(), read_built(Path::new(&mayfly))?),
        ("bin/scenarios".to_owned(), read_built(&this_program)?),
        ("bin/firecracker".to_owned(), read(FIRECRACKER.into())?),
        ("images/initrd".to_owned(), build_guest_initrd(&busybox)?),
        ("bin/busybox".to_owned(), busybox),
    ];
    for module in MODULES {
        files.push((
            format!("modules/{module}"),
            read_fetched(&format!("modules/{module}"))?,
        ));
    }
    for image in IMAGES {
        files.push((format!("images/{image}"), read_fetched(image)?));
    }
    for tool in EXT4_TOOLS {
        files.push((format!("bin/{tool}"), read_fetched(&format!("ext4/{tool}"))?));
    }
    for library in LIBRARIES {
        files.push((
            format!("lib/{library}"),
            read_fetched(&format!("ext4/lib/{library}"))?,
        ));
    }
    files.push((
        format!("lib64/{LOADER}"),
        read_fetched(&format!("ext4/lib/{LOADER}"))?,
    ));
    files.extend(read_guests()?);
    Ok(files)
}

fn read_guests() -> Result<Files, Error> {
    let unreadable = |source| Error::Built {
        path: GUESTS.into(),
        source,
    };
    let mut guests = Files::new();
    for entry in fs::read_dir(GUESTS).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_file() {
            guests.push((format!("guests/{name}"), read_built(&path)?));
        }
    }
    Ok(guests)
}

fn build_guest_initrd(busybox: &[u8]) -> Result<Vec<u8>, Error> {
    let mut archive = Archive::new(Vec::new());
    for directory in ["bin", "dev", "mnt", "modules", "proc", "sys"] {
        archive.add_directory(directory).unwrap();
    }
    archive.add_file("init", include_bytes!("guest-init.sh")).unwrap();
    archive.add_file("bin/busybox", busybox).unwrap();
    archive
        .add_file("bin/virtio", include_bytes!("guest-virtio.sh"))
        .unwrap();
    for module in GUEST_MODULES {
        let name = format!("modules/{module}");
        archive.add_file(&name, &read_fetched(&name)?).unwrap();
    }
    Ok(archive.finish().unwrap())
}

fn pack(path: &Path, files: &Files) -> io::Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    for directory in [
        "bin", "dev", "guests", "images", "lib", "lib64", "modules", "proc", "sys", "tmp",
    ] {
        archive.add_directory(directory)?;
    }
    for (name, contents) in files {
        archive.add_file(name, contents)?;
    }
    archive.finish().map(drop)
}

fn read_fetched(name: &str) -> Result<Vec<u8>, Error> {
    read(Path::new(FETCHED).join(name))
}

fn read(path: PathBuf) -> Result<Vec<u8>, Error> {
    fs::read(&path).map_err(|source| Error::Fetched { path, source })
}

fn read_built(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Built {
        path: path.to_owned(),
        source,
    })
}
