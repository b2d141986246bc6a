//! What devices cost that are started and have nothing to do.

use std::io;
use std::time::{Duration, Instant};

use devices::virtio::block::IoEngine;
use devices::virtio::mmio::Transport;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{block, net};

/// How long nothing may happen.
const IDLE: Duration = Duration::from_secs(10);

/// Counts how often the event loop would be woken, after each device has worked. The goal if it was missed.
pub fn missed() -> Option<String> {
    let mut disk = block::Pages::new(IoEngine::Async, block::SHAPES[0]);
    let mut interface = net::Transmit::new(net::SHAPES[0]);
    let wakeups = count(&mut [disk.transport(), interface.transport()]);
    println!(
        "idle drive and interface: {wakeups} wake-ups in {} s",
        IDLE.as_secs()
    );
    (wakeups > 0).then(|| format!("idle: {wakeups} wake-ups, not 0"))
}

fn count(transports: &mut [&mut Transport]) -> usize {
    let epoll = Epoll::new().unwrap();
    let mut tokens = Vec::new();
    for (index, transport) in transports.iter().enumerate() {
        for source in transport.sources() {
            let edge = if source.edge {
                EventSet::EDGE_TRIGGERED
            } else {
                EventSet::empty()
            };
            let event = EpollEvent::new(EventSet::IN | edge, tokens.len() as u64);
            epoll
                .ctl(ControlOperation::Add, source.descriptor, event)
                .unwrap();
            tokens.push((index, source.token));
        }
    }
    // What is still to be done is done, before it counts.
    while serve(&epoll, Duration::ZERO, &tokens, transports) > 0 {}
    let end = Instant::now() + IDLE;
    let mut wakeups = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        wakeups += serve(&epoll, left, &tokens, transports);
        if left.is_zero() {
            return wakeups;
        }
    }
}

/// One turn of the event loop. Returns 1 if it was woken.
fn serve(epoll: &Epoll, wait: Duration, tokens: &[(usize, u32)], transports: &mut [&mut Transport]) -> usize {
    let mut events = [EpollEvent::default(); 16];
    let milliseconds = i32::try_from(wait.as_millis()).unwrap();
    let ready = match epoll.wait(milliseconds, &mut events) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
        ready => ready.unwrap(),
    };
    for event in &events[..ready] {
        let (index, token) = tokens[usize::try_from(event.data()).unwrap()];
        transports[index].ready(token);
    }
    usize::from(ready > 0)
}
