//! Pause gate, kick and requests of observers: the loop of a vCPU thread, with a model of KVM_RUN.

use std::time::Duration;

use interleavings::channel::{Receiver, Sender, channel};
use interleavings::gate::{PauseGate, ThreadSet};
use interleavings::kick_target::KickTarget;
use interleavings::requests::ObserverRequests;
use interleavings::sync::Arc;
use interleavings::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use crate::{Event, check};

const FIRST: ThreadSet = ThreadSet::vcpu(0);
/// Timeouts of a model never expire.
const TIMEOUT: Duration = Duration::ZERO;
/// ID of the vCPU thread.
const THREAD: i32 = 7;

/// What a vCPU thread and the main thread share.
#[derive(Default)]
struct Vcpu {
    gate: PauseGate,
    target: KickTarget,
    /// Pending kick signal.
    signal: Event,
    requests: ObserverRequests,
    /// Guest memory.
    memory: AtomicU32,
}

impl Vcpu {
    fn kick(&self) {
        if self.target.to_kick().is_some() {
            self.signal.set();
        }
    }

    fn close(&self) {
        self.gate.close(FIRST, || self.kick(), TIMEOUT).unwrap();
    }

    fn stop(&self) {
        self.gate.stop();
        self.kick();
    }

    /// Loop of the vCPU thread, as in `VcpuRunner::run_guest`.
    fn run(&self, inspections: &Receiver<Sender<u32>>) {
        self.target.bind(THREAD);
        loop {
            // `immediate_exit`, cleared after KVM_RUN. The signal handler sets it at any time after that.
            let mut immediate_exit = self.signal.take();
            if self.gate.is_open() {
                if self.requests.has_any() {
                    self.requests.take_inspection();
                    for reply in inspections.try_iter() {
                        self.requests.end_inspection();
                        reply.send(1).unwrap();
                    }
                    continue;
                }
                immediate_exit |= self.signal.take();
                if !immediate_exit {
                    self.memory.fetch_add(1, Ordering::Relaxed);
                    // The guest halts. A signal ends KVM_RUN.
                    self.signal.wait();
                }
            } else if self.gate.is_stopped() {
                break;
            } else {
                self.gate.wait(FIRST, || ());
            }
        }
        self.target.unbind();
        self.gate.leave(FIRST);
    }
}

/// Runs a vCPU thread beside `main`, which stops it.
fn run_beside(main: impl Fn(&Vcpu, &Sender<Sender<u32>>) + Send + Sync + 'static) {
    check(move || {
        let vcpu = Arc::new(Vcpu::default());
        let (sender, receiver) = channel();
        let shared = vcpu.clone();
        let thread = thread::spawn(move || shared.run(&receiver));
        main(&vcpu, &sender);
        thread.join().unwrap();
    });
}

#[test]
fn closed_gate_keeps_guest_from_running() {
    run_beside(|vcpu, _| {
        vcpu.close();
        let memory = vcpu.memory.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(vcpu.memory.load(Ordering::Relaxed), memory);
        vcpu.stop();
    });
}

#[test]
fn reopened_gate_closes_again() {
    run_beside(|vcpu, _| {
        vcpu.close();
        vcpu.gate.open();
        vcpu.close();
        let memory = vcpu.memory.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(vcpu.memory.load(Ordering::Relaxed), memory);
        vcpu.stop();
    });
}

#[test]
fn stopped_thread_ends() {
    run_beside(|vcpu, _| {
        vcpu.stop();
        assert_eq!(
            vcpu.gate.wait_end(FIRST, TIMEOUT).to_string(),
            "",
            "threads that run"
        );
    });
}

#[test]
fn inspection_reaches_running_guest() {
    run_beside(|vcpu, inspections| {
        assert!(vcpu.requests.begin_inspection());
        let (reply, receiver) = channel();
        inspections.send(reply).unwrap();
        vcpu.requests.request_inspection();
        vcpu.kick();
        assert_eq!(receiver.receive(), Some(1));
        assert!(vcpu.requests.begin_inspection());
        vcpu.stop();
    });
}

#[test]
fn open_gate_shows_what_precedes_it() {
    check(|| {
        let (gate, memory) = (Arc::new(PauseGate::default()), Arc::new(AtomicU32::new(0)));
        gate.close_at_start();
        let shared = (gate.clone(), memory.clone());
        let thread = thread::spawn(move || {
            let (gate, memory) = shared;
            // A restored vCPU polls the gate, without its lock, before it waits.
            gate.expect_change();
            if !gate.is_open() {
                gate.wait(FIRST, || ());
            }
            assert_eq!(memory.load(Ordering::Relaxed), 1);
        });
        memory.store(1, Ordering::Relaxed);
        gate.open();
        thread.join().unwrap();
    });
}

#[test]
fn waiting_thread_handles_requests() {
    check(|| {
        let gate = Arc::new(PauseGate::default());
        gate.close_at_start();
        let (sender, requests) = channel();
        let (reply, replies) = channel();
        let shared = gate.clone();
        let thread = thread::spawn(move || {
            shared.wait(FIRST, || {
                for number in requests.try_iter() {
                    reply.send(number).unwrap();
                }
            });
        });
        for number in [1_u32, 2] {
            sender.send(number).unwrap();
            gate.notify_waiters();
            assert_eq!(replies.receive(), Some(number));
        }
        gate.open();
        thread.join().unwrap();
    });
}
