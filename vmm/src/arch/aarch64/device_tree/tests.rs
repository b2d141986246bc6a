use std::collections::BTreeMap;
use std::ffi::CStr;

use super::{DeviceTree, Error, SEED_LENGTH};
use crate::arch::MmioDeviceInfo;
use crate::arch::aarch64::layout::Layout;
use crate::config::{AddressLayout, GicVersion, MAX_DEVICES, MAX_VCPUS};

/// Parsed device tree: value of each property by its path.
type Properties = BTreeMap<String, Vec<u8>>;

/// Parses a flattened device tree: Devicetree Specification 0.4, chapter 5.
fn parse(bytes: &[u8]) -> Properties {
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let string = |at: usize| {
        let text = CStr::from_bytes_until_nul(&bytes[at..]).unwrap();
        text.to_str().unwrap().to_owned()
    };
    let usize = |value: u32| usize::try_from(value).unwrap();
    assert_eq!(word(0), 0xd00d_feed);
    assert_eq!(usize(word(4)), bytes.len());
    let (mut at, strings) = (usize(word(8)), usize(word(12)));
    let (mut path, mut properties) = (Vec::new(), Properties::new());
    loop {
        let token = word(at);
        at += 4;
        match token {
            1 => {
                let name = string(at);
                at = (at + name.len() + 1).next_multiple_of(4);
                path.push(name);
                let full = format!("{}/", path[..].join("/"));
                assert!(properties.insert(full.clone(), Vec::new()).is_none(), "{full}");
            }
            2 => drop(path.pop().unwrap()),
            3 => {
                let (length, name) = (usize(word(at)), string(strings + usize(word(at + 4))));
                at += 8;
                let key = format!("{}/{name}", path.join("/"));
                properties.insert(key, bytes[at..at + length].to_vec());
                at = (at + length).next_multiple_of(4);
            }
            9 => break,
            other => panic!("token {other}"),
        }
    }
    assert!(path.is_empty());
    properties
}

fn tree(layout: AddressLayout, vcpus: u8, gic: GicVersion, devices: usize) -> Result<Vec<u8>, Error> {
    let layout = Layout::of(layout);
    let affinities: Vec<u64> = (0..vcpus)
        .map(|id| 1 << 31 | u64::from(id >> 4) << 8 | u64::from(id & 15))
        .collect();
    let mmio_devices: Vec<MmioDeviceInfo> = layout.mmio_devices().take(devices).collect();
    DeviceTree {
        layout,
        memory: 128 << 20,
        affinities: &affinities,
        gic,
        cmdline: c"console=ttyS0 -- a",
        initrd: Some(0x8100_0000..0x8100_1234),
        mmio_devices: &mmio_devices,
        seed: [7; SEED_LENGTH],
    }
    .flatten()
}

fn properties(layout: AddressLayout, vcpus: u8, gic: GicVersion, devices: usize) -> Properties {
    parse(&tree(layout, vcpus, gic, devices).unwrap())
}

fn words(properties: &Properties, path: &str) -> Vec<u32> {
    let bytes = &properties
        .get(path)
        .unwrap_or_else(|| panic!("{path} is missing"));
    let words = bytes
        .chunks(4)
        .map(|word| u32::from_be_bytes(word.try_into().unwrap()));
    words.collect()
}

fn doubles(properties: &Properties, path: &str) -> Vec<u64> {
    let words = words(properties, path);
    let pairs = words
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 32 | u64::from(pair[1]));
    pairs.collect()
}

fn strings(properties: &Properties, path: &str) -> Vec<String> {
    let bytes = properties
        .get(path)
        .unwrap_or_else(|| panic!("{path} is missing"));
    let text = String::from_utf8(bytes.clone()).unwrap();
    text.strip_suffix('\0')
        .unwrap()
        .split('\0')
        .map(str::to_owned)
        .collect()
}

#[test]
fn chosen_has_command_line_console_initrd_and_seed() {
    for (layout, console) in [
        (AddressLayout::ArmFc2, "/uart@40002000"),
        (AddressLayout::ArmVirt2, "/pl011@9000000"),
    ] {
        let tree = properties(layout, 1, GicVersion::V3, 0);
        assert_eq!(strings(&tree, "/chosen/bootargs"), ["console=ttyS0 -- a"]);
        assert_eq!(strings(&tree, "/chosen/stdout-path"), [console]);
        assert!(tree.contains_key(&format!("{console}/")));
        assert_eq!(doubles(&tree, "/chosen/linux,initrd-start"), [0x8100_0000]);
        assert_eq!(doubles(&tree, "/chosen/linux,initrd-end"), [0x8100_1234]);
        assert_eq!(tree["/chosen/rng-seed"], [7; 64]);
    }
}

#[test]
fn memory_is_that_of_the_map() {
    let fc = properties(AddressLayout::ArmFc2, 1, GicVersion::V3, 0);
    assert_eq!(
        doubles(&fc, "/memory@80000000/reg"),
        [0x8000_0000, (128 << 20) - 0x1_0000]
    );
    let virt = properties(AddressLayout::ArmVirt2, 1, GicVersion::V3, 0);
    assert_eq!(
        doubles(&virt, "/memory@40000000/reg"),
        [0x4000_0000, (128 << 20) - 0x1_0000]
    );
    assert_eq!(
        (words(&virt, "/#address-cells"), words(&virt, "/#size-cells")),
        (vec![2], vec![2])
    );
}

#[test]
fn generation_id_lies_behind_listed_memory() {
    for (layout, old, id) in [
        (AddressLayout::ArmFc2, AddressLayout::ArmFc, 0x87ff_0010),
        (AddressLayout::ArmVirt2, AddressLayout::ArmVirt, 0x47ff_0010),
    ] {
        let tree = properties(layout, 1, GicVersion::V3, 0);
        let node = format!("/rng@{id:x}");
        assert_eq!(
            strings(&tree, &format!("{node}/compatible")),
            ["microsoft,vmgenid"]
        );
        assert_eq!(doubles(&tree, &format!("{node}/reg")), [id, 16]);
        // Shared, edge-triggered.
        assert_eq!(words(&tree, &format!("{node}/interrupts")), [0, 2, 1]);
        let tree = properties(old, 1, GicVersion::V3, 0);
        assert!(!tree.keys().any(|path| path.starts_with("/rng@")));
        let memory = Layout::of(old).memory;
        assert_eq!(
            doubles(&tree, &format!("/memory@{memory:x}/reg")),
            [memory, 128 << 20]
        );
    }
}

#[test]
fn gic_v3_has_one_region_of_redistributors() {
    let tree = properties(AddressLayout::ArmFc2, 3, GicVersion::V3, 0);
    assert_eq!(strings(&tree, "/intc/compatible"), ["arm,gic-v3"]);
    assert_eq!(
        doubles(&tree, "/intc/reg"),
        [0x0800_0000, 0x1_0000, 0x080a_0000, 3 * 0x2_0000]
    );
    assert_eq!(words(&tree, "/intc/#interrupt-cells"), [3]);
    assert_eq!(words(&tree, "/intc/phandle"), words(&tree, "/interrupt-parent"));
    assert_eq!(
        words(&tree, "/timer/interrupts"),
        [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]
    );
}

#[test]
fn gic_v2_names_vcpus_in_private_interrupts() {
    let tree = properties(AddressLayout::ArmVirt2, 3, GicVersion::V2, 0);
    assert_eq!(
        strings(&tree, "/intc/compatible"),
        ["arm,cortex-a15-gic", "arm,gic-400"]
    );
    assert_eq!(
        doubles(&tree, "/intc/reg"),
        [0x0800_0000, 0x1000, 0x0801_0000, 0x2000]
    );
    assert_eq!(words(&tree, "/timer/interrupts")[6..9], [1, 11, 0x704]);
}

#[test]
fn vcpus_have_their_affinity_and_psci() {
    let tree = properties(AddressLayout::ArmFc2, 18, GicVersion::V3, 0);
    assert_eq!(doubles(&tree, "/cpus/cpu@0/reg"), [0]);
    assert_eq!(doubles(&tree, "/cpus/cpu@11/reg"), [0x101]);
    assert!(!tree.contains_key("/cpus/cpu@12/"));
    assert_eq!(strings(&tree, "/cpus/cpu@11/enable-method"), ["psci"]);
    assert_eq!(strings(&tree, "/psci/method"), ["hvc"]);
    assert_eq!(
        strings(&tree, "/psci/compatible")[..2],
        ["arm,psci-1.0", "arm,psci-0.2"]
    );
    assert_eq!(words(&tree, "/psci/cpu_on"), [0xc400_0003]);
    assert_eq!(words(&tree, "/psci/cpu_off"), [0x8400_0002]);
}

#[test]
fn serial_port_and_clock_are_those_of_the_map() {
    let fc = properties(AddressLayout::ArmFc2, 1, GicVersion::V3, 0);
    assert_eq!(strings(&fc, "/uart@40002000/compatible"), ["ns16550a"]);
    assert_eq!(doubles(&fc, "/uart@40002000/reg"), [0x4000_2000, 0x1000]);
    assert_eq!(words(&fc, "/uart@40002000/interrupts"), [0, 1, 1]);
    assert_eq!(doubles(&fc, "/rtc@40001000/reg"), [0x4000_1000, 0x1000]);
    let virt = properties(AddressLayout::ArmVirt2, 1, GicVersion::V3, 0);
    assert_eq!(
        strings(&virt, "/pl011@9000000/compatible"),
        ["arm,pl011", "arm,primecell"]
    );
    assert_eq!(words(&virt, "/pl011@9000000/interrupts"), [0, 1, 4]);
    assert_eq!(
        strings(&virt, "/pl011@9000000/clock-names"),
        ["uartclk", "apb_pclk"]
    );
    let clock = words(&virt, "/apb-pclk/phandle");
    assert_eq!(words(&virt, "/pl011@9000000/clocks"), [clock[0], clock[0]]);
    assert_eq!(
        strings(&virt, "/rtc@9010000/compatible"),
        ["arm,pl031", "arm,primecell"]
    );
}

#[test]
fn virtio_devices_are_coherent_and_below_a_page() {
    let tree = properties(AddressLayout::ArmFc2, 1, GicVersion::V3, 2);
    for (node, base, interrupt) in [
        ("/virtio_mmio@40003000", 0x4000_3000, 16),
        ("/virtio_mmio@40004000", 0x4000_4000, 17),
    ] {
        assert_eq!(strings(&tree, &format!("{node}/compatible")), ["virtio,mmio"]);
        assert_eq!(doubles(&tree, &format!("{node}/reg")), [base, 0x200]);
        assert_eq!(words(&tree, &format!("{node}/interrupts")), [0, interrupt, 1]);
        assert!(tree[&format!("{node}/dma-coherent")].is_empty());
    }
    let nodes = tree
        .keys()
        .filter(|path| path.starts_with("/virtio") && path.ends_with('/'));
    assert_eq!(nodes.count(), 2);
}

#[test]
fn largest_tree_has_no_cache_nodes_and_fits() {
    let bytes = tree(AddressLayout::ArmVirt2, MAX_VCPUS, GicVersion::V3, MAX_DEVICES).unwrap();
    assert!(bytes.len() < 32 << 10, "{}", bytes.len());
    assert!(!parse(&bytes).keys().any(|path| path.contains("cache")));
    let cmdline = [vec![b'x'; 65 << 10], vec![0]].concat();
    let large = DeviceTree {
        layout: Layout::of(AddressLayout::ArmFc2),
        memory: 1 << 20,
        affinities: &[0],
        gic: GicVersion::V3,
        cmdline: CStr::from_bytes_with_nul(&cmdline).unwrap(),
        initrd: None,
        mmio_devices: &[],
        seed: [0; SEED_LENGTH],
    };
    let error = large.flatten().unwrap_err();
    assert!(matches!(error, Error::Size(size) if size > 65 << 10), "{error}");
}
