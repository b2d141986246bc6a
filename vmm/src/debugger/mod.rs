//! Debugger: gdb attached to a VM, on a thread of its own.
//!
//! ```text
//! thread mayfly_gdb:  accept > hold all vCPUs > gdb::serve > release them
//! vCPU threads:       KVM_EXIT_DEBUG > hold all vCPUs > report > wait at the gate, execute calls of the debugger
//! ```
//! The thread waits for gdb and for vCPUs; the event loop waits for neither. The connection of an attach comes from a listener that
//! was opened before the VM started, or from an API socket.

mod abilities;
mod context;
mod listener;
mod monitor;
mod points;
mod session;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::Duration;

use gdb::{Debuggee, SessionEnd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use crate::arch::DebugAbilities;
pub use abilities::probe;
pub(crate) use context::SnapshotRequest;
pub use listener::{DebugAddress, DebugListener, ListenError};

use crate::channel::{Receiver, Sender, channel};
use crate::vcpu::ThreadSet;
use crate::vm::VmCore;
use context::{Context, Order, Shared};
use listener::Connection;
use session::VmDebuggee;

/// Maximum wait for the end of the thread at the end of the VM: gdb may not read its last packet.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Milliseconds without the listener after its error, so that a lasting one costs no processor time.
const ACCEPT_RETRY_MS: i32 = 100;

/// Data of the descriptors in epoll instances.
const WAKE: u64 = 0;
const LISTENER: u64 = 1;

/// Reason why a debugger cannot attach.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no VM yet.
    #[error("cannot attach the debugger: the VM is not started; start it first")]
    BeforeStart,
    /// The thread of the debugger has ended.
    #[error(
        "cannot attach the debugger: its thread has ended after an error, which is in the log; restart the VM to debug it"
    )]
    Ended,
    /// Another debugger is attached.
    #[error("cannot attach the debugger: another one is attached; detach it first")]
    Busy,
    /// The thread cannot be started.
    #[error("cannot start the thread of the debugger")]
    Thread(#[source] io::Error),
}

/// Settings of a debugger from the start of a VM on.
#[derive(Debug)]
pub struct DebugSettings {
    /// Listener for gdb.
    pub listener: DebugListener,
    /// The guest runs without gdb, and does not wait for it before its first instruction.
    pub is_running: bool,
    /// Abilities of this host.
    pub abilities: DebugAbilities,
}

/// Handle of the thread.
pub(crate) struct Debugger {
    shared: Arc<Shared>,
    orders: Sender<Order>,
    /// Disconnects at the end of the thread.
    ended: Receiver<()>,
    snapshots: Receiver<SnapshotRequest>,
    /// Signalled with each request for a snapshot.
    snapshot_event: Arc<EventFd>,
}

impl Debugger {
    /// Starts the thread for the VM of `core`. If the `settings` require it, the vCPUs must be held already, and stay so until gdb
    /// resumes them.
    ///
    /// # Errors
    /// Fails if a descriptor or the thread cannot be created.
    pub fn start(core: Arc<VmCore>, settings: Option<DebugSettings>) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let (wake, snapshot_event) = (event()?, Arc::new(event()?));
        let vcpu_wake = wake.try_clone()?;
        let (orders, order_receiver) = channel();
        let (snapshot_sender, snapshots) = channel();
        let (end_sender, ended) = channel();
        let shared = Arc::new(Shared {
            core,
            wake,
            is_attached: AtomicBool::new(false),
        });
        let (listener, abilities) = match settings {
            Some(settings) => (Some(settings.listener), settings.abilities),
            None => (None, DebugAbilities::default()),
        };
        let server = Server(Context {
            shared: shared.clone(),
            orders: order_receiver,
            snapshots: snapshot_sender,
            snapshot_event: snapshot_event.clone(),
        });
        let body = move || {
            let shared = server.0.shared.clone();
            let machine = shared.core.machine();
            // By the thread, so that a machine whose debugger could not start is unchanged.
            machine.set_debugger_wake(vcpu_wake);
            // A crash may have preceded it.
            let _ = shared.wake.write(1);
            if let Err(error) = server.run(listener, abilities) {
                log::error!("the debugger ends: {error}");
                machine.expect_debugger(false);
                machine.release_vcpus(ThreadSet::default());
            }
            // In this order: an attach fails from now on, and no earlier one is left.
            drop(server);
            shared.is_attached.store(false, Ordering::Relaxed);
            drop(shared);
            drop::<Sender<()>>(end_sender);
        };
        Builder::new().name("mayfly_gdb".to_owned()).spawn(body)?;
        Ok(Self {
            shared,
            orders,
            ended,
            snapshots,
            snapshot_event,
        })
    }

    /// Attaches gdb on `stream`.
    ///
    /// # Errors
    /// [`AttachError::Busy`] and [`AttachError::Ended`].
    pub fn attach(&self, stream: UnixStream, abilities: DebugAbilities) -> Result<(), AttachError> {
        if self.shared.is_attached.swap(true, Ordering::Relaxed) {
            return Err(AttachError::Busy);
        }
        if !self.order(Order::Attach(stream, abilities)) {
            self.shared.is_attached.store(false, Ordering::Relaxed);
            return Err(AttachError::Ended);
        }
        Ok(())
    }

    /// Returns true while gdb is attached.
    pub fn is_attached(&self) -> bool {
        self.shared.is_attached.load(Ordering::Relaxed)
    }

    /// Returns the eventfd that is signalled with each request for a snapshot.
    pub fn snapshot_event(&self) -> &EventFd {
        &self.snapshot_event
    }

    /// Takes a request for a snapshot.
    pub fn take_snapshot_request(&self) -> Option<SnapshotRequest> {
        let _ = self.snapshot_event.read();
        self.snapshots.try_receive().ok()
    }

    /// Ends the thread: the VM has ended with `status`, which gdb gets. Waits at most [`END_TIMEOUT`].
    pub fn end(self, status: u8) {
        self.order(Order::End(status));
        drop(self.snapshots);
        let _ = self.ended.receive_within(END_TIMEOUT);
    }

    /// Returns false if the thread has ended after an error.
    fn order(&self, order: Order) -> bool {
        let is_sent = self.orders.send(order).is_ok();
        // Fails only if the counter is at its maximum, and then the eventfd is readable.
        let _ = self.shared.wake.write(1);
        is_sent
    }
}

/// Returns true if `error` of an accept is not that of a single connection, and so may return at once.
fn is_lasting(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

/// Body of the thread.
struct Server(Context);

impl Server {
    /// Serves one debugger after the other, until the VM ends.
    fn run(&self, listener: Option<DebugListener>, abilities: DebugAbilities) -> io::Result<()> {
        let epoll = Epoll::new()?;
        let add = |file, data| {
            let event = EpollEvent::new(EventSet::IN, data);
            epoll.ctl(ControlOperation::Add, file, event)
        };
        add(self.0.shared.wake.as_raw_fd(), WAKE)?;
        if let Some(listener) = &listener {
            add(listener.as_raw_fd(), LISTENER)?;
        }
        let (mut timeout, mut is_logged) = (-1, false);
        loop {
            let mut event = [EpollEvent::default()];
            match epoll.wait(timeout, &mut event) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) => {
                    timeout = -1;
                    if let Some(listener) = &listener {
                        add(listener.as_raw_fd(), LISTENER)?;
                    }
                    continue;
                }
                result => result?,
            };
            let (connection, abilities) = match (event[0].data(), &listener) {
                (LISTENER, Some(listener)) => {
                    let connection = match listener.accept() {
                        Ok(connection) => connection,
                        Err(error) => {
                            if is_lasting(&error) {
                                if !std::mem::replace(&mut is_logged, true) {
                                    log::warn!("cannot accept gdb, and tries again: {error}");
                                }
                                let event = EpollEvent::default();
                                epoll.ctl(ControlOperation::Delete, listener.as_raw_fd(), event)?;
                                timeout = ACCEPT_RETRY_MS;
                            }
                            continue;
                        }
                    };
                    if self.0.shared.is_attached.swap(true, Ordering::Relaxed) {
                        // An order to attach follows.
                        continue;
                    }
                    (connection, abilities)
                }
                _ => match self.take_order(listener.as_ref()) {
                    Some(Order::Attach(stream, abilities)) => (Connection::Unix(stream), abilities),
                    Some(Order::End(_)) => return Ok(()),
                    None => continue,
                },
            };
            if self.serve(connection, abilities, listener.is_some())? == SessionEnd::Ended {
                return Ok(());
            }
        }
    }

    /// Takes an order. Without one, a vCPU has woken the thread: reports a crash that waits for a debugger at `listener`.
    fn take_order(&self, listener: Option<&DebugListener>) -> Option<Order> {
        let _ = self.0.shared.wake.read();
        let order = self.0.orders.try_receive().ok();
        let crash = self.0.shared.core.machine().waiting_crash();
        if let (None, Some((vcpu, ip)), Some(listener)) = (&order, crash, listener) {
            let place = ip.map(|ip| format!(" at {ip:#x}")).unwrap_or_default();
            log::warn!("vCPU {vcpu} has crashed{place} and waits for gdb: target remote {listener}");
        }
        order
    }

    /// Serves gdb on `connection` from its attach to its detach. With `has_listener`, a crash of the guest waits for the next debugger.
    fn serve(
        &self,
        connection: Connection,
        abilities: DebugAbilities,
        has_listener: bool,
    ) -> io::Result<SessionEnd> {
        let machine = self.0.shared.core.machine();
        log::info!("a debugger attaches");
        machine.expect_debugger(true);
        let end = match VmDebuggee::attach(&self.0, &connection, abilities)? {
            Ok(mut debuggee) => {
                let end = gdb::serve(&mut &connection, &mut debuggee);
                debuggee.detach();
                // gdb may disconnect at the end of the VM, whose order is taken already.
                if debuggee.has_ended() {
                    SessionEnd::Ended
                } else {
                    end
                }
            }
            Err(waiting) => {
                log::warn!(
                    "cannot attach the debugger: a thread does not stop ({waiting}); attach again when its disk answers"
                );
                SessionEnd::Detached
            }
        };
        log::info!("the debugger has detached");
        self.0.shared.is_attached.store(false, Ordering::Relaxed);
        if end == SessionEnd::Killed {
            machine.kill();
        }
        machine.expect_debugger(has_listener);
        machine.release_vcpus(ThreadSet::default());
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::is_lasting;

    #[test]
    fn errors_of_a_single_connection_do_not_last() {
        for kind in [
            ErrorKind::WouldBlock,
            ErrorKind::Interrupted,
            ErrorKind::ConnectionAborted,
        ] {
            assert!(!is_lasting(&Error::from(kind)), "{kind}");
        }
        assert!(is_lasting(&Error::from_raw_os_error(libc::EMFILE)));
    }
}
