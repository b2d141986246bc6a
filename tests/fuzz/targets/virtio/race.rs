//! Devices while other CPUs change rings, headers and data.
//!
//! Nothing outside guest memory changes, and the device works after a reset. An input gives the options of the device, and the
//! descriptors and data that the CPUs write; the order of the changes depends on the threads.

use std::time::Duration;

use devices::BusDevice;
use devices::virtio::mmio::Transport;
use devices::virtio::testing::{GuardedMemory, Race};
use snapshot::Component;

use super::super::board::ManualClock;
use super::super::input::Input;
use super::guest::{self, Guest};
use super::{Model, Scene};

/// Duration of one race.
const DURATION: Duration = Duration::from_millis(4);

fn run_model<M: Model>(mut model: M, input: &mut Input<'_>)
where
    Transport<M::Device>: BusDevice + Component,
{
    thread_local! {
        static MEMORY: GuardedMemory = GuardedMemory::new(guest::MEMORY);
    }
    let clock = ManualClock::default();
    let mut race = Race {
        seed: input.u16().into(),
        size: guest::MEMORY as u64,
        chains: Vec::new(),
        data: Vec::new(),
        features: u64::from(input.u32()) | 1 << 32,
        reset_interval: Duration::from_micros(u64::from(input.u8()) * 16 + 100),
        duration: DURATION,
    };
    for _ in 0..input.u8() % 32 {
        let kind = input.u8();
        let descriptors = (0..kind % 4 + 1).map(|_| guest::descriptor(input));
        race.chains.push((usize::from(kind >> 7), descriptors.collect()));
    }
    while !input.is_empty() {
        let length = usize::from(input.u8()) % 64 + 1;
        race.data.push(input.bytes(length).to_vec());
    }
    MEMORY.with(|memory| {
        let device = model.create(clock.clone());
        let queues = vec![guest::QUEUE; M::QUEUES];
        let (transport, driver) = race.run(memory, device, &queues, || {});
        let mut scene = Scene::<M> {
            transport,
            guest: Guest::new(driver),
            line: std::sync::Arc::default(),
            clock,
        };
        scene.restart(0);
        model.check_recovery(&mut scene);
        drop(scene);
        memory.check();
    });
}

/// The first byte gives the options of the device, its top bit the kind.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let options = input.u8();
    match options >> 7 {
        0 => run_model(super::block::Drive::new(options), &mut input),
        _ => run_model(super::net::Peer::new(options), &mut input),
    }
}
