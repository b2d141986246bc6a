//! Devices while other CPUs change rings, headers and data.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use scratch::Directory;

use super::block::{CacheType, DiskConfig, IoEngine};
use super::testing::{Buffer, GuardedMemory, INDIRECT, NEXT, Race, RawDescriptor, WRITE};
use super::{Block, VirtioDevice};
use crate::clock::MonotonicClock;
use crate::testing::net_on;

const MEMORY: u64 = 0x4_0000;
const QUEUE: u16 = 16;
const DURATION: Duration = Duration::from_millis(1500);
static DISK: [u8; 0x2_0000] = [0xd5; 0x2_0000];

/// Headers of requests of all types, and segments of discard and write zeroes.
fn block_data() -> Vec<Vec<u8>> {
    let headers =
        [0_u32, 1, 1, 4, 8, 11, 13, 77].map(|kind| (u64::from(kind), [0_u64, 1, 200, 255, u64::MAX]));
    let segments = [(0, 1), (3, 9), (250, 20)]
        .map(|(sector, count): (u64, u64)| (sector, [count, count | 1 << 32, 0, 0, 0]));
    let bytes = |first: u64, second: u64| [first.to_le_bytes(), second.to_le_bytes()].concat();
    let pairs = headers.into_iter().chain(segments);
    pairs
        .flat_map(|(first, others)| others.map(|second| bytes(first, second)))
        .collect()
}

/// Returns descriptors of `parts`: length, and true if device-writable. The race fills in the addresses.
fn chain(parts: &[(u32, bool)]) -> Vec<RawDescriptor> {
    let descriptor = |(index, (length, writable)): (usize, &(u32, bool))| RawDescriptor {
        length: *length,
        flags: if *writable { WRITE } else { 0 } | if index + 1 < parts.len() { NEXT } else { 0 },
        ..RawDescriptor::default()
    };
    parts.iter().enumerate().map(descriptor).collect()
}

fn indirect() -> Vec<RawDescriptor> {
    vec![RawDescriptor {
        length: 48,
        flags: INDIRECT,
        ..RawDescriptor::default()
    }]
}

fn block_chains() -> Vec<(usize, Vec<RawDescriptor>)> {
    let (header, status) = ((16, false), (1, true));
    let read = |length| chain(&[header, (length, true), status]);
    let write = |length| chain(&[header, (length, false), status]);
    let all = [
        read(512),
        read(4096),
        write(512),
        write(1024),
        write(16),
        read(20),
        chain(&[header, status]),
        chain(&[header, (512, true), (1024, true), status]),
        indirect(),
    ];
    all.into_iter().map(|chain| (0, chain)).collect()
}

fn race(seed: u64, chains: Vec<(usize, Vec<RawDescriptor>)>, data: Vec<Vec<u8>>) -> Race {
    Race {
        seed,
        size: MEMORY,
        chains,
        data,
        // All bits that select features of devices and queues.
        features: u64::MAX >> 24,
        reset_interval: Duration::from_millis(3),
        duration: DURATION,
    }
}

fn race_block(engine: IoEngine, read_only: bool, cache: CacheType, seed: u64) {
    let directory = Directory::new();
    let path = directory.write("disk", DISK);
    let config = DiskConfig {
        id: "disk".to_owned(),
        path: path.clone().into(),
        read_only,
        shared: false,
        allow_empty: false,
        cache,
        engine,
        bandwidth: None,
        operations: None,
    };
    let memory = GuardedMemory::new(usize::try_from(MEMORY).unwrap());
    let block = Block::open(&config, Box::new(MonotonicClock::new())).unwrap();
    let race = race(seed, block_chains(), block_data());
    let (mut transport, mut driver) = race.run(&memory, Box::new(block), &[QUEUE], || {});

    // A race without requests would show nothing.
    let metrics = transport.device().metrics();
    assert!(
        metrics.reads > 0,
        "the device has executed no racing requests: {metrics:?}"
    );

    driver.start(&mut transport, 0);
    let header = driver.buffers;
    driver.write(header, &[[0; 8], 1_u64.to_le_bytes()].concat());
    let (data, status) = (header + 0x200, header + 0x600);
    driver.write(status, &[0xaa]);
    let buffers = [
        Buffer::readable(header, 16),
        Buffer::writable(data, 512),
        Buffer::writable(status, 1),
    ];
    driver.queues[0].add(&buffers);
    driver.notify(&mut transport, 0);
    // The request may wait for those from before the reset, and then for the event loop.
    scratch::wait_until("the read after the reset", || {
        for watched in transport.watched_fds() {
            transport.process_event(watched.token);
        }
        !driver.queues[0].collect_used().is_empty()
    });
    assert_eq!(driver.read(status, 1), [0]);
    drop(transport);
    memory.check();
    check_disk(Path::new(&path), read_only);
}

/// Checks that the length of the disk is unchanged, and the content of a read-only disk.
fn check_disk(path: &Path, read_only: bool) {
    let content = fs::read(path).unwrap();
    assert_eq!(content.len(), DISK.len());
    assert!(!read_only || content == DISK, "a read-only disk has changed");
}

#[test]
fn racing_guest_is_harmless_to_sync_block() {
    race_block(IoEngine::Sync, false, CacheType::Unsafe, 1);
}

#[test]
fn racing_guest_is_harmless_to_async_block() {
    race_block(IoEngine::Async, false, CacheType::Writeback, 2);
}

#[test]
fn racing_guest_cannot_change_read_only_disk() {
    race_block(IoEngine::Sync, true, CacheType::Writeback, 3);
    race_block(IoEngine::Async, true, CacheType::Unsafe, 4);
}

#[test]
fn racing_guest_is_harmless_to_net() {
    let (socket, mut peer) = UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    let net = net_on(socket, Box::new(MonotonicClock::new()));
    let memory = GuardedMemory::new(usize::try_from(MEMORY).unwrap());
    let buffers = [(12, true), (1600, true)];
    let chains = vec![
        (0, chain(&buffers[1..])),
        (0, chain(&buffers)),
        (1, chain(&[(72, false)])),
        (1, chain(&[(12, false), (1000, false)])),
        (0, indirect()),
        (1, indirect()),
    ];
    let race = race(5, chains, vec![vec![0; 64], vec![0; 16]]);
    let queues = [QUEUE, QUEUE];
    let frame = [&1000_u32.to_be_bytes()[..], &[0x5a; 1000]].concat();
    let mut rest = Vec::new();
    let act = || {
        // A frame goes out whole, over several calls if the socket is full.
        if rest.is_empty() {
            rest = frame.clone();
        }
        let sent = peer.write(&rest).unwrap_or(0);
        rest.drain(..sent);
        let mut received = [0; 0x1_0000];
        while peer.read(&mut received).is_ok_and(|length| length > 0) {}
    };
    let (mut transport, mut driver) = race.run(&memory, Box::new(net), &queues, act);

    // A race without packets would show nothing.
    let metrics = transport.device().metrics();
    assert!(
        metrics.receive.packets > 0 && metrics.transmit.packets > 0,
        "the device has processed no racing packets: {metrics:?}"
    );

    driver.start(&mut transport, 0);
    let address = driver.buffers;
    driver.write(address, &[0; 72]);
    driver.queues[1].add(&[Buffer::readable(address, 72)]);
    driver.notify(&mut transport, 1);
    assert_eq!(
        driver.queues[1].collect_used().len(),
        1,
        "the device does not work after a reset"
    );
    transport.device_mut().reset();
    memory.check();
}
