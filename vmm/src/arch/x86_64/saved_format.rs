//! Compatibility test of the saved format, with three state files.
//!
//! | file | origin |
//! |---|---|
//! | `2c9d1da.state` | written by commit 2c9d1da on an AMD host; `machine` has version 1 |
//! | `machine-2.state` | the same with version 2 of `machine` and its layout V2 |
//! | `identity.state` | the same with layout V3 and section `identity` |
//!
//! Each file has two drives, one with a rate limiter, two network interfaces, two vCPUs and the split interrupt
//! controller. The test decodes each section into its state structure and encodes it again: a field or variant that is
//! added, removed, moved or changes its type alters the bytes. Two exchanged fields of the same type do not; the
//! `machine` section is therefore checked by value too.

use std::fs;
use std::path::{Path, PathBuf};

use devices::virtio::block::BlockState;
use devices::virtio::mmio::TransportState;
use devices::virtio::net::NetState;
use devices::{Cmos, ExitPort, I8042, Pit, PowerOffPort, Serial, SleepPort, SplitIrqchip};
use scratch::Directory;
use snapshot::file::{self, Contents};
use snapshot::{ArchiveReader, ArchiveWriter, Persist, Schema};

use super::clock::ClockState;
use crate::ErrorChain;
use crate::config::{AddressLayout, IrqchipMode, VmConfig, VmConfigV1};
use crate::identity::IdentityState;
use crate::vcpu::NativeVcpuState;

type StateOf<T> = <T as Persist>::State;

fn fixture(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/arch/x86_64/testdata");
    directory.join(name)
}

/// Sections of the fixture, and of its copy.
struct Sections<'a> {
    reader: ArchiveReader<'a>,
    writer: ArchiveWriter,
}

impl Sections<'_> {
    /// Decodes section `key` as `S` and encodes it again. Returns the state.
    fn copy<S: Schema>(&mut self, key: &str) -> S {
        let state: S = self
            .reader
            .read(key)
            .unwrap_or_else(|error| panic!("{}", ErrorChain(&error)));
        self.writer.write(key, &state).unwrap();
        state
    }

    fn copy_platform(&mut self) {
        self.copy::<StateOf<Pit>>("pit");
        self.copy::<StateOf<I8042>>("i8042");
        self.copy::<StateOf<Cmos>>("cmos");
        self.copy::<StateOf<ExitPort>>("debug-exit");
        self.copy::<StateOf<SleepPort>>("sleep-control");
        self.copy::<StateOf<PowerOffPort>>("power-off");
        self.copy::<StateOf<SplitIrqchip>>("irqchip");
        self.copy::<ClockState>("clock");
    }

    fn copy_devices(&mut self) {
        self.copy::<StateOf<Serial>>("serial");
        for key in ["virtio/0", "virtio/1", "virtio/2", "virtio/3"] {
            self.copy::<TransportState>(key);
        }
        for key in ["virtio/0/device", "virtio/1/device"] {
            self.copy::<BlockState>(key);
        }
        for key in ["virtio/2/device", "virtio/3/device"] {
            self.copy::<NetState>(key);
        }
    }
}

/// Checks that the names of the fields still belong to their values.
fn check_config(config: &VmConfig) {
    assert!(config.kernel.ends_with("blocks.elf"), "{:?}", config.kernel);
    assert_eq!((config.initrd.as_ref(), config.protocol), (None, None));
    assert_eq!(config.cmdline, "irq=1");
    assert_eq!(config.memory.bytes(), 32 << 20);
    assert_eq!((config.vcpus, config.irqchip), (2, IrqchipMode::Split));
    let drives: Vec<_> = config.drives().map(|drive| drive.disk.id.as_str()).collect();
    assert_eq!(drives, ["data", "drive1"]);
    let nets: Vec<_> = config.interfaces().map(|net| net.id.as_str()).collect();
    assert_eq!(nets, ["net0", "wan"]);
}

/// Checks that the state file `name`, whose configuration is a `C`, is encoded again as it is. Returns its configuration.
fn check_round_trip<C: Schema + Into<VmConfig>>(name: &str) -> VmConfig {
    let state = file::read(&fixture(name), None).unwrap();
    let header = state.header();
    assert_eq!(header.host.cpu, "AuthenticAMD family 0x19 model 0x11");
    assert_eq!((header.memory, header.contents), (32 << 20, Contents::Full));
    let mut sections = Sections {
        reader: state.reader().unwrap(),
        writer: ArchiveWriter::new(),
    };
    let config: VmConfig = sections.copy::<C>("machine").into();
    check_config(&config);
    for key in ["vcpu/0", "vcpu/1"] {
        sections.copy::<NativeVcpuState>(key);
    }
    if config.layout == AddressLayout::V3 {
        assert_eq!(sections.copy::<IdentityState>("identity").counter, 2);
    }
    sections.copy_platform();
    sections.copy_devices();
    let Sections { reader, writer } = sections;
    reader.finish().unwrap();
    let directory = Directory::new();
    let copy = directory.path("copy.state");
    file::write(&copy, header, writer).unwrap();
    let (expected, written) = (fs::read(fixture(name)).unwrap(), fs::read(copy).unwrap());
    let difference = (0..)
        .zip(&expected)
        .zip(&written)
        .find(|((_, old), new)| old != new);
    assert_eq!(
        difference, None,
        "offset and byte of the fixture, byte of the copy"
    );
    assert_eq!(written.len(), expected.len());
    config
}

/// Returns the configuration as a load reads it.
fn loaded_config(name: &str) -> VmConfig {
    let state = file::read(&fixture(name), None).unwrap();
    VmConfig::read_section(&mut state.reader().unwrap(), "machine").unwrap()
}

#[test]
fn state_file_of_2c9d1da_round_trip_is_identical() {
    let name = "2c9d1da.state";
    let config = check_round_trip::<VmConfigV1>(name);
    assert_eq!(config.layout, AddressLayout::V1);
    assert_eq!(loaded_config(name).layout, AddressLayout::V1);
}

#[test]
fn state_file_with_layout_round_trip_is_identical() {
    let name = "machine-2.state";
    let config = check_round_trip::<VmConfig>(name);
    assert_eq!(config.layout, AddressLayout::V2);
    assert_eq!(loaded_config(name).layout, AddressLayout::V2);
}

#[test]
fn state_file_with_identity_round_trip_is_identical() {
    let name = "identity.state";
    let config = check_round_trip::<VmConfig>(name);
    assert_eq!(config.layout, AddressLayout::V3);
    assert_eq!(loaded_config(name).layout, AddressLayout::V3);
}
