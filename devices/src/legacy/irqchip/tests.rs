use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use proptest::prelude::proptest;
use snapshot::Persist;

use super::{ExternalInterrupt, SplitIrqchip};
use crate::bus::{Bus, BusBuilder};
use crate::interrupt::Interrupt;
use crate::legacy::ioapic::{Message, MessageSink, Route};
use crate::sync::lock;
use crate::testing::{accesses, check_round_trip, replay};

const IOAPIC: u64 = 0xfec0_0000;

#[derive(Default)]
struct Host {
    raised: AtomicU32,
    vectors: Mutex<Vec<u32>>,
}

impl MessageSink for Host {
    fn send(&self, message: Message) {
        lock(&self.vectors).push(message.data & 0xff);
    }

    fn replace_routes(&self, _: &[Route]) {}
}

impl ExternalInterrupt for Host {
    fn raise(&self) {
        self.raised.fetch_add(1, Ordering::SeqCst);
    }
}

struct Board {
    host: Arc<Host>,
    irqchip: SplitIrqchip,
    ports: Bus,
    memory: Bus,
}

impl Board {
    /// Creates controllers with all lines unmasked: 8259A vectors from 0x20, IOAPIC vectors 0x60 + pin, edge-triggered.
    fn new() -> Self {
        let board = Self::fresh();
        for (port, base) in [(0x20, 0x20), (0xa0, 0x28)] {
            board.ports.write(port, &[0x11]);
            for word in [base, 0, 0x01, 0x00] {
                board.ports.write(port + 1, &[word]);
            }
        }
        for pin in 0..24 {
            board.program(pin, 0x60 + u32::from(pin));
        }
        board
    }

    fn fresh() -> Self {
        let host = Arc::new(Host::default());
        let irqchip = SplitIrqchip::new(host.clone(), host.clone());
        let (mut ports, mut memory) = (BusBuilder::new(), BusBuilder::new());
        irqchip.attach(&mut ports, &mut memory, IOAPIC).unwrap();
        let (ports, memory) = (ports.build(), memory.build());
        Self {
            host,
            irqchip,
            ports,
            memory,
        }
    }

    fn program(&self, pin: u8, entry: u32) {
        self.memory.write(IOAPIC, &[0x10 + 2 * pin, 0, 0, 0]);
        self.memory.write(IOAPIC + 0x10, &entry.to_le_bytes());
    }

    fn line(&self, gsi: u32) -> Arc<dyn Interrupt> {
        self.irqchip.line(gsi).unwrap()
    }

    fn sent(&self) -> Vec<u32> {
        std::mem::take(&mut lock(&self.host.vectors))
    }
}

#[test]
fn edge_of_ioapic_does_not_reach_pic() {
    let board = Board::new();
    board.irqchip.trigger_ioapic(13);
    assert_eq!(board.sent(), [0x6d]);
    assert_eq!(board.irqchip.acknowledge(), None);
    board.irqchip.trigger_ioapic(13);
    assert_eq!(board.sent(), [0x6d], "a second edge");
    board.program(13, 0x1_006d);
    board.irqchip.trigger_ioapic(13);
    board.irqchip.trigger_ioapic(24);
    assert_eq!(board.sent(), [0; 0]);
}

#[test]
fn line_reaches_both_controllers() {
    let board = Board::new();
    for (gsi, pic, ioapic) in [
        (0, Some(0x20), 0x62),
        (4, Some(0x24), 0x64),
        (15, Some(0x2f), 0x6f),
        (16, None, 0x70),
        (23, None, 0x77),
    ] {
        board.line(gsi).trigger();
        assert_eq!(board.sent(), [ioapic], "line {gsi}");
        assert_eq!(board.irqchip.acknowledge(), pic, "line {gsi}");
        board.ports.write(0xa0, &[0x20]);
        board.ports.write(0x20, &[0x20]);
    }
    for gsi in [2, 24, u32::MAX] {
        assert!(board.irqchip.line(gsi).is_none(), "line {gsi}");
    }
    assert_eq!(board.ports.unclaimed() + board.memory.unclaimed(), 0);
}

#[test]
fn each_rising_edge_of_intr_is_reported() {
    let board = Board::new();
    let raised = || board.host.raised.load(Ordering::SeqCst);
    assert!(!board.irqchip.intr());
    board.line(3).trigger();
    board.line(4).trigger();
    assert!(board.irqchip.intr());
    assert_eq!(raised(), 1, "INTR was already high");
    assert_eq!(board.irqchip.acknowledge(), Some(0x23));
    assert!(!board.irqchip.intr());
    board.ports.write(0x20, &[0x20]);
    assert!(board.irqchip.intr());
    assert_eq!(raised(), 2, "the end of line 3 unblocks line 4");
    board.ports.write(0x21, &[0xff]);
    assert!(!board.irqchip.intr());
    assert_eq!(board.irqchip.acknowledge(), None, "INTR has fallen");
    assert_eq!(raised(), 2);
}

#[test]
fn level_triggered_line_stays_asserted() {
    let board = Board::new();
    board.ports.write(0x4d0, &[0x00, 0x08]);
    board.program(11, 0x8000 | 0x6b);
    let line = board.line(11);
    line.set_level(true);
    assert_eq!(board.sent(), [0x6b]);
    board.irqchip.end_of_interrupt(0x6b);
    assert_eq!(board.sent(), [0x6b]);
    assert_eq!(board.irqchip.acknowledge(), Some(0x2b));
    line.set_level(false);
    board.irqchip.end_of_interrupt(0x6b);
    board.ports.write(0xa0, &[0x20]);
    board.ports.write(0x20, &[0x20]);
    assert_eq!(board.sent(), [0_u32; 0]);
    assert!(!board.irqchip.intr());
}

/// Calls the interrupt controller on a rising edge of INTR, which deadlocks if the mutex is held.
struct Reentrant(Mutex<Option<SplitIrqchip>>);

impl ExternalInterrupt for Reentrant {
    fn raise(&self) {
        let irqchip = lock(&self.0).clone().unwrap();
        assert_eq!(irqchip.acknowledge(), Some(0x24));
    }
}

#[test]
fn intr_is_reported_without_lock() {
    let external = Arc::new(Reentrant(Mutex::new(None)));
    let mut irqchip = SplitIrqchip::new(Arc::new(Host::default()), external.clone());
    irqchip.restore(Board::new().irqchip.save().unwrap()).unwrap();
    *lock(&external.0) = Some(irqchip.clone());
    irqchip.line(4).unwrap().trigger();
    assert!(!irqchip.intr());
}

#[test]
fn concurrent_edges_are_not_lost() {
    let board = Board::new();
    // Automatic end of interrupt: the test only has to acknowledge.
    for (port, base) in [(0x20, 0x20), (0xa0, 0x28)] {
        board.ports.write(port, &[0x11]);
        for word in [base, 0, 0x03, 0x00] {
            board.ports.write(port + 1, &[word]);
        }
    }
    thread::scope(|scope| {
        for gsi in [1, 3, 4, 5] {
            let line = board.line(gsi);
            scope.spawn(move || (0..100).for_each(|_| line.trigger()));
        }
    });
    assert_eq!(board.sent().len(), 400, "the IOAPIC sends every edge");
    let mut vectors: Vec<_> = std::iter::from_fn(|| board.irqchip.acknowledge()).collect();
    vectors.sort_unstable();
    assert_eq!(
        vectors,
        [0x21, 0x23, 0x24, 0x25],
        "the 8259A latches one edge per line"
    );
    assert!(!board.irqchip.intr());
}

#[test]
fn state_round_trips_with_intr() {
    let board = Board::new();
    board.line(4).trigger();

    let mut fresh = Board::fresh();
    fresh.irqchip.restore(board.irqchip.save().unwrap()).unwrap();
    assert!(fresh.irqchip.intr());
    assert_eq!(fresh.irqchip.acknowledge(), Some(0x24));
    assert_eq!(fresh.sent(), [0_u32; 0]);
}

proptest! {
    #[test]
    fn any_access_is_safe(master in accesses(2), slave in accesses(2), elcr in accesses(2)) {
        let board = Board::new();
        for (device, list) in [
            (board.irqchip.pic_ports(super::Chip::Master), master),
            (board.irqchip.pic_ports(super::Chip::Slave), slave),
            (board.irqchip.edge_level_ports(), elcr),
        ] {
            replay(&mut *lock(&device), &list);
            board.line(11).set_level(!list.is_empty());
            board.irqchip.acknowledge();
        }
        check_round_trip(&board.irqchip, || Board::fresh().irqchip);
    }
}
