//! Virtqueue and interrupt of a virtio device, against a model of a driver.
//!
//! Guest memory and the used ring's entries are relaxed: only the words of the rings, or the interrupt, order them.

use std::convert::Infallible;
use std::sync::Arc;

use interleavings::interrupt::Interrupt;
use interleavings::sync::atomic::{AtomicU16, Ordering, fence};
use interleavings::virtio_interrupt::{USED_BUFFER, VirtioInterrupt};
use interleavings::virtqueue::{
    SUPPRESS, SharedWords, Word, available_entry, available_index, disable_notification, enable_notification,
    full_barrier, is_event_passed, needs_notification, publish_used,
};
use loom::thread;

use crate::{Event, check};

/// Queue size.
const SIZE: u16 = 2;

/// An order that the device or the driver needs. A model without it must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weakness {
    None,
    /// The device stores the used index relaxed.
    Release,
    /// The device loads the available index relaxed.
    Acquire,
    /// The device has no full barrier.
    DeviceFence,
    /// The driver has no full barrier.
    DriverFence,
}

/// Virtqueue in shared memory, with the events of both sides.
struct Ring {
    event_idx: bool,
    weakness: Weakness,
    available_flags: AtomicU16,
    available_index: AtomicU16,
    available_entries: [AtomicU16; SIZE as usize],
    used_event: AtomicU16,
    used_flags: AtomicU16,
    used_index: AtomicU16,
    available_event: AtomicU16,
    used_entries: [AtomicU16; SIZE as usize],
    /// Content of the descriptors.
    descriptors: [AtomicU16; SIZE as usize],
    /// Available buffer notification.
    notification: Event,
    /// Used buffer notification.
    interrupt: Event,
}

impl Ring {
    fn new(event_idx: bool, weakness: Weakness) -> Arc<Self> {
        Arc::new(Self {
            event_idx,
            weakness,
            available_flags: AtomicU16::new(0),
            available_index: AtomicU16::new(0),
            available_entries: [AtomicU16::new(0), AtomicU16::new(0)],
            used_event: AtomicU16::new(0),
            used_flags: AtomicU16::new(0),
            used_index: AtomicU16::new(0),
            available_event: AtomicU16::new(0),
            used_entries: [AtomicU16::new(0), AtomicU16::new(0)],
            descriptors: [AtomicU16::new(0), AtomicU16::new(0)],
            notification: Event::default(),
            interrupt: Event::default(),
        })
    }

    fn word(&self, word: Word) -> &AtomicU16 {
        match word {
            Word::AvailableFlags => &self.available_flags,
            Word::AvailableIndex => &self.available_index,
            Word::AvailableEntry(slot) => &self.available_entries[usize::from(slot)],
            Word::UsedEvent => &self.used_event,
            Word::UsedFlags => &self.used_flags,
            Word::UsedIndex => &self.used_index,
            Word::AvailableEvent => &self.available_event,
        }
    }

    fn driver_fence(&self) {
        if self.weakness != Weakness::DriverFence {
            fence(Ordering::SeqCst);
        }
    }

    /// Driver: adds the chain `number`, whose descriptor holds `content`, and notifies the device if it expects that.
    fn add_available(&self, number: u16, content: u16) {
        let slot = number % SIZE;
        self.descriptors[usize::from(slot)].store(content, Ordering::Relaxed);
        self.available_entries[usize::from(slot)].store(slot, Ordering::Relaxed);
        self.available_index.store(number + 1, Ordering::Release);
        self.driver_fence();
        let is_expected = match self.event_idx {
            true => is_event_passed(self.available_event.load(Ordering::Relaxed), number, number + 1),
            false => self.used_flags.load(Ordering::Relaxed) & SUPPRESS == 0,
        };
        if is_expected {
            self.notification.set();
        }
    }

    /// Device: pops the chain `next`, if it is available. Returns the content of its descriptor.
    fn pop(&self, next: u16) -> Option<u16> {
        if available_index(self).unwrap() == next {
            return None;
        }
        let head = available_entry(self, next % SIZE).unwrap();
        Some(self.descriptors[usize::from(head)].load(Ordering::Relaxed))
    }

    /// Device: waits for the chain `next`.
    fn wait_available(&self, next: u16) -> u16 {
        loop {
            if !self.event_idx {
                disable_notification(self).unwrap();
            }
            if let Some(content) = self.pop(next) {
                return content;
            }
            if !enable_notification(self, self.event_idx, next).unwrap() {
                self.notification.wait();
            }
        }
    }

    /// Device: adds the used entry `number` with `content`, and notifies the driver if it expects that.
    fn add_used(&self, number: u16, content: u16) {
        self.used_entries[usize::from(number % SIZE)].store(content, Ordering::Relaxed);
        publish_used(self, number + 1).unwrap();
        if needs_notification(self, self.event_idx, number, number + 1).unwrap() {
            self.interrupt.set();
        }
    }

    /// Driver: waits for the used entry `number`, and returns its content.
    fn wait_used(&self, number: u16) -> u16 {
        self.available_flags.store(SUPPRESS, Ordering::Relaxed);
        loop {
            if self.used_index.load(Ordering::Acquire) != number {
                return self.used_entries[usize::from(number % SIZE)].load(Ordering::Relaxed);
            }
            self.used_event.store(number, Ordering::Relaxed);
            self.available_flags.store(0, Ordering::Relaxed);
            self.driver_fence();
            if self.used_index.load(Ordering::Acquire) == number {
                self.interrupt.wait();
            }
        }
    }
}

impl SharedWords for Ring {
    type Error = Infallible;

    fn load(&self, word: Word, order: Ordering) -> Result<u16, Infallible> {
        let order = match self.weakness {
            Weakness::Acquire => Ordering::Relaxed,
            _ => order,
        };
        Ok(self.word(word).load(order))
    }

    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Infallible> {
        let order = match self.weakness {
            Weakness::Release => Ordering::Relaxed,
            _ => order,
        };
        self.word(word).store(value, order);
        Ok(())
    }

    fn barrier(&self) {
        if self.weakness != Weakness::DeviceFence {
            full_barrier();
        }
    }
}

/// The driver adds chains; the device must find each, and its descriptor.
fn pass_available(event_idx: bool, weakness: Weakness) {
    check(move || {
        let ring = Ring::new(event_idx, weakness);
        let driver = ring.clone();
        let thread =
            thread::spawn(move || (0..2).for_each(|number| driver.add_available(number, number + 1)));
        for next in 0..2 {
            assert_eq!(ring.wait_available(next), next + 1, "content of a descriptor");
        }
        thread.join().unwrap();
    });
}

/// The device adds used entries; the driver must find each, and its content.
fn pass_used(event_idx: bool, weakness: Weakness) {
    check(move || {
        let ring = Ring::new(event_idx, weakness);
        let device = ring.clone();
        let thread = thread::spawn(move || (0..2).for_each(|number| device.add_used(number, number + 1)));
        for number in 0..2 {
            assert_eq!(ring.wait_used(number), number + 1, "content of an entry");
        }
        thread.join().unwrap();
    });
}

/// The driver reuses a descriptor once it is used; the device must have read it before.
fn reuse_descriptor(weakness: Weakness) {
    check(move || {
        let ring = Ring::new(false, weakness);
        let driver = ring.clone();
        let thread = thread::spawn(move || {
            driver.add_available(0, 1);
            driver.wait_used(0);
            driver.descriptors[0].store(9, Ordering::Relaxed);
        });
        assert_eq!(ring.wait_available(0), 1, "content of a descriptor");
        ring.add_used(0, 1);
        thread.join().unwrap();
    });
}

#[test]
fn available_chains_arrive() {
    pass_available(false, Weakness::None);
}

#[test]
fn available_chains_arrive_with_event_idx() {
    pass_available(true, Weakness::None);
}

#[test]
fn used_entries_arrive() {
    pass_used(false, Weakness::None);
}

#[test]
fn used_entries_arrive_with_event_idx() {
    pass_used(true, Weakness::None);
}

#[test]
fn descriptor_is_reused_after_its_read() {
    reuse_descriptor(Weakness::None);
}

#[test]
#[should_panic(expected = "content of a descriptor")]
fn index_without_acquire_shows_stale_descriptor() {
    pass_available(false, Weakness::Acquire);
}

#[test]
#[should_panic(expected = "content of an entry")]
fn index_without_release_shows_stale_entry() {
    pass_used(false, Weakness::Release);
}

#[test]
#[should_panic(expected = "deadlock")]
fn device_without_fence_loses_available_notification() {
    pass_available(false, Weakness::DeviceFence);
}

#[test]
#[should_panic(expected = "deadlock")]
fn device_without_fence_loses_available_notification_with_event_idx() {
    pass_available(true, Weakness::DeviceFence);
}

#[test]
#[should_panic(expected = "deadlock")]
fn device_without_fence_loses_used_notification() {
    pass_used(false, Weakness::DeviceFence);
}

#[test]
#[should_panic(expected = "deadlock")]
fn device_without_fence_loses_used_notification_with_event_idx() {
    pass_used(true, Weakness::DeviceFence);
}

#[test]
#[should_panic(expected = "deadlock")]
fn driver_without_fence_loses_available_notification() {
    pass_available(false, Weakness::DriverFence);
}

#[test]
#[should_panic(expected = "deadlock")]
fn driver_without_fence_loses_used_notification() {
    pass_used(true, Weakness::DriverFence);
}

/// Interrupt line whose rising edges the driver awaits.
#[derive(Default)]
struct Line(Event);

impl Interrupt for Line {
    fn set_level(&self, asserted: bool) {
        if asserted {
            self.0.set();
        }
    }
}

#[test]
fn acknowledged_interrupt_shows_its_cause() {
    check(|| {
        let line = Arc::new(Line::default());
        let interrupt = Arc::new(VirtioInterrupt::new(line.clone()));
        let used = Arc::new(AtomicU16::new(0));
        let device = (interrupt.clone(), used.clone());
        let thread = thread::spawn(move || {
            for index in 1..=2 {
                device.1.store(index, Ordering::Relaxed);
                device.0.notify_used();
            }
        });
        // Handler of a driver: it reads and acknowledges the cause, and ignores an interrupt without one.
        let mut seen = 0;
        while seen < 2 {
            line.0.wait();
            let causes = interrupt.status();
            interrupt.acknowledge(causes);
            if causes & USED_BUFFER != 0 {
                seen = used.load(Ordering::Relaxed);
            }
        }
        thread.join().unwrap();
    });
}

#[test]
fn seen_cause_shows_what_precedes_it() {
    check(|| {
        let interrupt = Arc::new(VirtioInterrupt::new(Arc::new(Line::default())));
        let used = Arc::new(AtomicU16::new(0));
        let device = (interrupt.clone(), used.clone());
        let thread = thread::spawn(move || {
            device.1.store(1, Ordering::Relaxed);
            device.0.notify_used();
        });
        // A driver may look at the ring before it acknowledges the cause.
        if interrupt.status() & USED_BUFFER != 0 {
            assert_eq!(used.load(Ordering::Relaxed), 1);
        }
        thread.join().unwrap();
    });
}

#[test]
fn seen_failure_shows_what_precedes_it() {
    check(|| {
        let interrupt = Arc::new(VirtioInterrupt::new(Arc::new(Line::default())));
        let used = Arc::new(AtomicU16::new(0));
        let device = (interrupt.clone(), used.clone());
        let thread = thread::spawn(move || {
            device.1.store(1, Ordering::Relaxed);
            device.0.set_needs_reset();
        });
        if interrupt.is_reset_needed() {
            assert_eq!(used.load(Ordering::Relaxed), 1);
        }
        thread.join().unwrap();
    });
}
