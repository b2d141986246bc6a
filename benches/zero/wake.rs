//! Sleepers of one snapshot, which datagrams wake.

use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::supervisor::{GATEWAY, Journal, Supervisor, address, id, in_network};
use crate::{PAUSE, Times, collect};

/// Port of the guest that echoes datagrams.
const ECHO: u16 = 7;
/// Maximum wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Interval of looks at the shells.
const INTERVAL: Duration = Duration::from_millis(2);
/// Maximum number of taps: one instance runs.
const TAPS: u32 = 4;

/// Way to start the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A new process.
    Spawn,
    /// A waiting shell.
    Shell,
}

/// Times of the wakes of one row.
pub struct Wakes {
    /// From the datagram to its echo.
    pub answers: Times,
    /// Floor of the start of a process, measured before each wake.
    pub floor: Times,
    /// Echo of the guest after each wake.
    pub echoes: Times,
    /// From the request of a suspend to the end of the process.
    pub suspends: Times,
    /// Mean time in microseconds from the packet, as read by the supervisor, to the response of the process.
    pub supervised: f64,
}

/// Instances of one snapshot that sleep.
pub struct Sleepers {
    supervisor: Supervisor,
    count: u32,
    form: Form,
    client: UdpSocket,
}

impl Sleepers {
    /// Registers `count` instances.
    pub fn new(directory: PathBuf, snapshot: &Path, count: u32, form: Form) -> io::Result<Self> {
        let mut journal = Journal::with_network(TAPS);
        for number in 0..count {
            let config = in_network(snapshot, number, &json!({"policy": "off"}));
            journal.register(number, &config);
        }
        let options: &[&str] = match form {
            Form::Spawn => &[],
            Form::Shell => &["--shells", "1"],
        };
        let supervisor = Supervisor::start(directory, &journal, options)?;
        let client = UdpSocket::bind((GATEWAY, 0))?;
        client.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self {
            supervisor,
            count,
            form,
            client,
        })
    }

    /// Sends a datagram to an instance, and waits for its echo.
    fn exchange(&self, number: u32) -> io::Result<Duration> {
        let (to, payload) = ((address(number), ECHO), number.to_be_bytes());
        let start = Instant::now();
        self.client.send_to(&payload, to)?;
        let mut buffer = [0; 16];
        let received = self.client.recv_from(&mut buffer);
        let time = start.elapsed();
        match received {
            Ok((length, from)) if from == to.into() && buffer[..length] == payload => Ok(time),
            Ok((_, from)) => Err(io::Error::other(format!(
                "{from} answers the datagram to {}",
                to.0
            ))),
            Err(error) => Err(io::Error::other(format!(
                "{} does not answer: {error}: {}",
                to.0,
                self.supervisor.log()
            ))),
        }
    }

    /// Wakes and suspends instances, in turn with the measurement `floor`. Each instance has a snapshot of its own, of an earlier
    /// suspend, before it is measured.
    pub fn measure(
        &self,
        rounds: usize,
        mut floor: impl FnMut() -> io::Result<Duration>,
    ) -> io::Result<Wakes> {
        // Far apart in the table.
        let number = |round: usize| u32::try_from(round * 7919).unwrap_or_default() % self.count;
        // The first two rounds of the measurement do not count.
        for round in 0..rounds + 2 {
            self.exchange(number(round))?;
            self.supervisor.suspend(&id(number(round)))?;
        }
        let (mut floors, mut echoes, mut suspends) = (Vec::new(), Vec::new(), Vec::new());
        let mut before = (0.0, 0.0);
        let answers = collect(rounds, |round| {
            if round == 2 {
                before = self.supervised()?;
            }
            floors.push(floor()?);
            self.await_shell()?;
            // The end of the previous process takes time of the same processors.
            thread::sleep(PAUSE);
            let time = self.exchange(number(round))?;
            echoes.push(self.exchange(number(round))?);
            suspends.push(self.supervisor.suspend(&id(number(round)))?);
            Ok(time)
        })?;
        let after = self.supervised()?;
        self.check_shells(2 * (rounds + 2))?;
        Ok(Wakes {
            answers,
            floor: Times(floors.split_off(2)),
            echoes: Times(echoes.split_off(2)),
            suspends: Times(suspends.split_off(2)),
            supervised: 1e6 * (after.0 - before.0) / (after.1 - before.1),
        })
    }

    /// Returns sum in seconds and number of the times of wakes.
    fn supervised(&self) -> io::Result<(f64, f64)> {
        let name = "mayfly_standby_wake_seconds";
        let metric = |end: &str| self.supervisor.metric(&format!("{name}{end}"));
        Ok((metric("_sum")?, metric("_count")?))
    }

    /// Waits until a shell is ready.
    fn await_shell(&self) -> io::Result<()> {
        while self.form == Form::Shell && self.supervisor.metric("mayfly_standby_shells")? < 1.0 {
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Fails if fewer than half of `wakes`, those that waited for a shell, used one.
    fn check_shells(&self, wakes: usize) -> io::Result<()> {
        let used = self.supervisor.metric("mayfly_standby_shell_wakes_total")?;
        let failures = self
            .supervisor
            .metric("mayfly_standby_failures_total{cause=\"shell\"}")?;
        let half = f64::from(u32::try_from(wakes / 2).unwrap_or(u32::MAX));
        if failures > 0.0 || (self.form == Form::Shell && used < half) {
            return Err(io::Error::other(format!(
                "{used} of {wakes} wakes used a shell, and {failures} failed"
            )));
        }
        Ok(())
    }
}
