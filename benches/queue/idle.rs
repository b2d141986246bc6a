//! Wake-ups by active devices without work.

use std::io;
use std::time::{Duration, Instant};

use devices::virtio::block::IoEngine;
use devices::virtio::mmio::Transport;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{block, net};

/// Duration of the measurement.
const IDLE: Duration = Duration::from_secs(10);

/// Counts the wake-ups of the event loop after each device has worked. Returns the goal if it is missed.
pub fn missed() -> Option<String> {
    let mut disk = block::Pages::new(IoEngine::Async, block::SHAPES[0]);
    let mut interface = net::Transmit::new(net::SHAPES[0]);
    let wakeups = count(&mut [disk.transport(), interface.transport()]);
    println!(
        "idle drive and interface: {wakeups} wake-ups in {} s",
        IDLE.as_secs()
    );
    (wakeups > 0).then(|| format!("idle: {wakeups} wake-ups, goal 0"))
}

fn count(transports: &mut [&mut Transport]) -> usize {
    let epoll = Epoll::new().unwrap();
    let mut tokens = Vec::new();
    for (index, transport) in transports.iter().enumerate() {
        for source in transport.watched_fds() {
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
    // Processes pending events first, which do not count.
    while process_events(&epoll, Duration::ZERO, &tokens, transports) > 0 {}
    let end = Instant::now() + IDLE;
    let mut wakeups = 0;
    loop {
        let remaining = end.saturating_duration_since(Instant::now());
        wakeups += process_events(&epoll, remaining, &tokens, transports);
        if remaining.is_zero() {
            return wakeups;
        }
    }
}

/// Waits once for events and processes them. Returns 1 if the event loop woke up.
fn process_events(
    epoll: &Epoll,
    wait: Duration,
    tokens: &[(usize, u32)],
    transports: &mut [&mut Transport],
) -> usize {
    let mut events = [EpollEvent::default(); 16];
    let milliseconds = i32::try_from(wait.as_millis()).unwrap();
    let ready = match epoll.wait(milliseconds, &mut events) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
        ready => ready.unwrap(),
    };
    for event in &events[..ready] {
        let (index, token) = tokens[usize::try_from(event.data()).unwrap()];
        transports[index].process_event(token);
    }
    usize::from(ready > 0)
}
