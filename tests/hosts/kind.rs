//! Kinds of emulated hosts: their machine under QEMU and their files.

use std::env;
use std::path::{Path, PathBuf};

/// A kind of emulated host.
#[derive(Debug, PartialEq, Eq)]
pub struct HostKind {
    /// Name for notices.
    pub name: &'static str,
    /// Architecture, which names directories.
    pub architecture: &'static str,
    /// Program of QEMU: a command, or a file of `make setup`.
    qemu: Qemu,
    /// Machine and processor.
    pub machine: &'static [&'static str],
    /// Arguments for the serial port of the report, after that of the console.
    pub report_port: &'static [&'static str],
    /// Parameters of the kernel: the console, and variables for host-init.sh.
    pub parameters: &'static str,
    /// Modules of the host, in the order of their dependencies.
    pub modules: &'static [&'static str],
    /// Modules of its Linux guest, in the order of their dependencies.
    pub guest_modules: &'static [&'static str],
    /// Images that run as guests.
    pub images: &'static [&'static str],
    /// Directory and name of the ELF interpreter.
    pub loader: (&'static str, &'static str),
    /// Directory of `make setup` with gdb and its libraries.
    gdb: &'static str,
    /// Directories of `make setup`, with their versions. The first that has a file counts.
    fetched: &'static [&'static str],
}

/// Place of a QEMU.
#[derive(Debug, PartialEq, Eq)]
enum Qemu {
    Installed(&'static str),
    Fetched(&'static str),
}

/// Modules of the Linux guest, where the kernel has the core of virtio as a module.
const GUEST_MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
];

/// Debian's kernel with kvm-amd, under QEMU's emulated SVM.
pub const X86_64: HostKind = HostKind {
    name: "x86_64",
    architecture: "x86_64",
    qemu: Qemu::Installed("qemu-system-x86_64"),
    machine: &["-M", "q35", "-cpu", "max,+svm,+npt"],
    report_port: &["-serial", "stdio"],
    parameters: "console=ttyS0 report=ttyS1 modules=irqbypass,kvm,kvm-amd,tun",
    modules: &["irqbypass", "kvm", "kvm-amd", "tun"],
    guest_modules: GUEST_MODULES,
    images: &["vmlinuz", "vmlinux", "vmlinuz-generic", "memtest86+", "xen"],
    loader: ("lib64", "ld-linux-x86-64.so.2"),
    gdb: "gdb-x86_64-1",
    fetched: &["x86_64-3"],
};

/// Debian's arm64 kernel, which has KVM built in, under QEMU's emulated EL2, with a GICv3.
pub const AARCH64_GICV3: HostKind = HostKind {
    name: "aarch64 with GICv3",
    architecture: "aarch64",
    qemu: Qemu::Installed("qemu-system-aarch64"),
    machine: &["-M", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a72"],
    // The machine has one PL011.
    report_port: &[
        "-chardev",
        "stdio,id=report",
        "-device",
        "pci-serial,chardev=report",
    ],
    parameters: "console=ttyAMA0 report=ttyS0 modules=tun",
    modules: &["tun"],
    guest_modules: GUEST_MODULES,
    images: &["vmlinuz"],
    loader: ("lib", "ld-linux-aarch64.so.1"),
    gdb: "gdb-aarch64-1",
    fetched: &["aarch64-1"],
};

/// The same with a GICv2.
pub const AARCH64_GICV2: HostKind = HostKind {
    name: "aarch64 with GICv2",
    machine: &["-M", "virt,virtualization=on,gic-version=2", "-cpu", "cortex-a72"],
    ..AARCH64_GICV3
};

/// The same as that with a GICv3, with two processors, for the order of memory accesses by two threads. KVM of such an emulated host
/// hangs now and then: it runs no guest.
pub const AARCH64_SMP: HostKind = HostKind {
    name: "aarch64 with two processors",
    machine: &[
        "-M",
        "virt,virtualization=on,gic-version=3",
        "-cpu",
        "cortex-a72",
        "-smp",
        "2",
    ],
    ..AARCH64_GICV3
};

/// A newer kernel and QEMU, of Debian's backports, with all features of a processor that QEMU emulates: SVE, pointer authentication. The
/// architected algorithm of the latter takes most of the time of a boot.
pub const AARCH64_BACKPORTS: HostKind = HostKind {
    name: "aarch64 with backports",
    qemu: Qemu::Fetched("qemu-system-aarch64"),
    machine: &[
        "-M",
        "virt,virtualization=on,gic-version=3",
        "-cpu",
        "max,pauth-impdef=on",
    ],
    parameters: "console=ttyAMA0 report=ttyS0",
    modules: &[],
    guest_modules: &[
        "virtio_mmio",
        "virtio_blk",
        "failover",
        "net_failover",
        "virtio_net",
    ],
    fetched: &["backports-1", "aarch64-1"],
    ..AARCH64_GICV3
};

/// All kinds.
pub const KINDS: [HostKind; 5] = [
    X86_64,
    AARCH64_GICV3,
    AARCH64_GICV2,
    AARCH64_SMP,
    AARCH64_BACKPORTS,
];

impl HostKind {
    /// Returns whether the scenario `name` belongs to this kind. Module [`crate::aarch64`] has those of aarch64.
    pub fn has_scenario(&self, name: &str) -> bool {
        let kind = match name.strip_prefix("aarch64::") {
            None => X86_64,
            Some(rest) if rest.contains("::gic2::") => AARCH64_GICV2,
            Some(rest) if rest.starts_with("backports::") => AARCH64_BACKPORTS,
            Some(rest) if rest.starts_with("virtqueue::") => AARCH64_SMP,
            Some(_) => AARCH64_GICV3,
        };
        *self == kind
    }

    /// Returns the path of a file that `make setup` fetched.
    pub fn fetched(&self, name: &str) -> PathBuf {
        let paths = self
            .fetched
            .iter()
            .map(|directory| cache().join(directory).join(name));
        let mut present = paths.filter(|path| path.exists());
        let first = || cache().join(self.fetched[0]).join(name);
        present.next().unwrap_or_else(first)
    }

    /// Returns the directory of gdb and its libraries.
    pub fn gdb(&self) -> PathBuf {
        cache().join(self.gdb)
    }

    /// Returns the program of QEMU.
    pub fn qemu(&self) -> PathBuf {
        match self.qemu {
            Qemu::Installed(name) => name.into(),
            Qemu::Fetched(name) => self.fetched(name),
        }
    }

    /// Returns the directory of the test guests.
    pub fn guests(&self) -> PathBuf {
        root().join("dist/guests").join(self.architecture)
    }

    /// Returns the path of the mayfly under test.
    pub fn mayfly(&self) -> PathBuf {
        if self.is_native() {
            env::var_os("MAYFLY").map_or_else(|| env!("CARGO_BIN_EXE_mayfly").into(), PathBuf::from)
        } else {
            root().join("dist").join(self.architecture).join("mayfly")
        }
    }

    /// Returns the path of this test program, built for the architecture of the host.
    pub fn scenarios(&self) -> PathBuf {
        if self.is_native() {
            env::current_exe().unwrap_or_default()
        } else {
            root().join("dist").join(self.architecture).join("scenarios")
        }
    }

    /// Returns the path of the program with the fewest KVM calls of a start.
    pub fn floor(&self) -> PathBuf {
        root().join("dist").join(self.architecture).join("floor")
    }

    /// Returns the programs that run tests/local on a host of this kind, with their names there. x86_64 runs it without a host.
    pub fn local_programs(&self) -> Vec<(&'static str, PathBuf)> {
        if *self == X86_64 {
            return Vec::new();
        }
        let directory = root().join("dist").join(self.architecture);
        vec![
            ("bin/local", directory.join("local")),
            ("bin/mayfly-jailer", directory.join("mayfly-jailer")),
        ]
    }

    /// Returns the goal of make that builds the files of the host.
    pub fn goal(&self) -> &'static str {
        if self.is_native() {
            "make build"
        } else {
            "make aarch64"
        }
    }

    fn is_native(&self) -> bool {
        self.architecture == env::consts::ARCH
    }
}

fn cache() -> PathBuf {
    root().join(".cache/hosts")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[cfg(test)]
mod tests {
    use super::{AARCH64_BACKPORTS, AARCH64_GICV2, AARCH64_GICV3, AARCH64_SMP, KINDS, X86_64};

    #[test]
    fn scenario_has_one_kind() {
        for (name, kind) in [
            ("programs::hello", X86_64),
            ("aarch64::programs::gic3::fc::hello", AARCH64_GICV3),
            ("aarch64::programs::gic2::virt::hello", AARCH64_GICV2),
            ("aarch64::backports::fc::hello", AARCH64_BACKPORTS),
            ("aarch64::virtqueue::driver", AARCH64_SMP),
        ] {
            assert!(kind.has_scenario(name), "{name}");
            assert_eq!(KINDS.iter().filter(|kind| kind.has_scenario(name)).count(), 1);
        }
    }
}
