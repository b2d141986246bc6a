//! Sleepers of one snapshot, which datagrams wake.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::PAUSE;
use crate::fixture::{Fixture, socket, text};
use crate::message::Request;
use crate::net::tap::Scratch;
use crate::net::{Network, NetworkSetup, WakeRule};
use crate::process::{Process, connect, guest, mayfly};
use crate::{MEMORY, Times, collect};

/// Port of the guest that echoes datagrams.
const ECHO: u16 = 7;
/// Address of the guest in its snapshot.
const GUEST: &str = "10.0.0.2";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Numbers of descriptors in the arguments of a load.
const TAP: RawFd = 200;
const FRAMES: RawFd = 201;
/// Maximum wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Way to start the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A new process.
    Spawn,
    /// A waiting shell.
    Shell,
    /// None: the measurement ends with its tap and first frames.
    None,
}

/// Creates the snapshot of a guest at [`GUEST`].
pub fn create_snapshot(fixture: &Fixture) -> io::Result<PathBuf> {
    let path = fixture.new_directory("net")?.join("s");
    run("ip tuntap add tap0 mode tap")?;
    let memory = format!("{MEMORY}M");
    let api = text(&socket());
    let _ = fs::remove_file(socket());
    let net = "tap:tap0,id=net0,mac=02:00:00:00:00:01";
    let address = format!("ip={GUEST}");
    let image = guest("net");
    let arguments = [
        "run",
        &image,
        "--memory",
        &memory,
        "--net",
        net,
        "--api-sock",
        &api,
        "--",
        &address,
    ];
    let mut vm = Process::start(&mayfly(), &arguments)?;
    vm.read("net 02:00:00:00:00:01 at 10.0.0.2\n".len())?;
    let mut command = Command::new(mayfly());
    let output = scratch::run(command.args(["snapshot", &text(&path), "--api-sock", &api]));
    match output.status.success() {
        true => Ok(path),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )),
    }
}

fn run(command: &str) -> io::Result<()> {
    let mut arguments = command.split(' ');
    let output = scratch::run(Command::new(arguments.next().unwrap_or_default()).args(arguments));
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{command} fails"))),
    }
}

/// Measures the echo of one guest that runs.
pub fn measure_running(snapshot: &Path, rounds: usize) -> io::Result<Times> {
    let mut sleepers = Sleepers::new(snapshot, 1)?;
    sleepers.send(sleepers.address(0))?;
    let (running, _) = sleepers.start(Form::Spawn, 0, None)?;
    sleepers.receive()?;
    let times = collect(rounds, |_| {
        let start = Instant::now();
        sleepers.send(sleepers.address(0))?;
        sleepers.receive()?;
        Ok(start.elapsed())
    });
    drop(running);
    times
}

/// Instances of one snapshot that sleep.
pub struct Sleepers {
    snapshot: PathBuf,
    network: Network,
    scratch: Scratch,
    count: u32,
    client: UdpSocket,
}

impl Sleepers {
    /// Registers `count` instances.
    pub fn new(snapshot: &Path, count: u32) -> io::Result<Self> {
        let gateway = IpAddr::V4(Ipv4Addr::new(10, 64, 0, 1));
        let setup = NetworkSetup {
            name: "mayfly0".into(),
            gateways: vec![(gateway, 10)],
            tap_prefix: "mf".into(),
            max_taps: 2,
            persistent: false,
        };
        let mut network = Network::open(setup).map_err(io::Error::other)?;
        network.prepare_taps(1).map_err(io::Error::other)?;
        let client = UdpSocket::bind((gateway, 0))?;
        client.set_read_timeout(Some(TIMEOUT))?;
        let mut sleepers = Self {
            snapshot: snapshot.to_owned(),
            network,
            scratch: Scratch::default(),
            count,
            client,
        };
        for number in 0..count {
            let address = sleepers.address(number);
            let registered = sleepers.network.register(address, number, MAC, WakeRule::Unicast);
            registered.map_err(io::Error::other)?;
        }
        Ok(sleepers)
    }

    /// Returns the address of instance `number`.
    pub fn address(&self, number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a41_0000 + number).into()
    }

    fn send(&self, address: IpAddr) -> io::Result<()> {
        self.client.send_to(b"mayfly", (address, ECHO)).map(drop)
    }

    fn receive(&self) -> io::Result<()> {
        self.client.recv(&mut [0; 16]).map(drop)
    }

    /// Measures one wake: from the datagram to its echo.
    pub fn wake(&mut self, form: Form, round: usize) -> io::Result<Duration> {
        // Far apart in the table.
        let number = u32::try_from(round * 7919).unwrap_or_default() % self.count;
        let shell = match form {
            Form::Shell => Some(Shell::start(&self.snapshot)?),
            Form::Spawn | Form::None => None,
        };
        // The end of the previous process takes time of the same processors.
        thread::sleep(PAUSE);
        let address = self.address(number);
        let start = Instant::now();
        self.send(address)?;
        let (running, time) = self.start(form, number, shell)?;
        let time = match form {
            Form::None => time - start,
            Form::Spawn | Form::Shell => {
                self.receive()?;
                start.elapsed()
            }
        };
        drop(running);
        let released = self.network.release(address, &mut self.scratch);
        released.map_err(io::Error::other)?;
        Ok(time)
    }

    /// Waits for the wake of instance `number`, and starts it. Returns the time after its tap and first frames.
    fn start(
        &mut self,
        form: Form,
        number: u32,
        shell: Option<Shell>,
    ) -> io::Result<(Option<Running>, Instant)> {
        let address = self.address(number);
        loop {
            let wakes = self.network.on_readable(&mut self.scratch);
            if wakes
                .map_err(io::Error::other)?
                .iter()
                .any(|wake| wake.address == address)
            {
                break;
            }
        }
        let assigned = self.network.assign(address, &mut self.scratch);
        let assigned = assigned.map_err(io::Error::other)?;
        let frames = assigned.frames.to_memfd()?;
        let ready = Instant::now();
        let net = format!("net0=fd:{TAP},guest-ip={GUEST},ip={address}");
        let directory = text(&self.snapshot);
        let frames_number = FRAMES.to_string();
        let arguments = [&directory, "--net", &net, "--first-frames", &frames_number];
        let running = match (form, shell) {
            (Form::None, _) => None,
            (_, Some(shell)) => Some(shell.load(&self.snapshot, &arguments, assigned.tap, frames)?),
            (_, None) => {
                // Numbers that the program inherits.
                let _inherited = [inherit(&assigned.tap, TAP)?, inherit(&frames, FRAMES)?];
                let arguments = [&["restore"], &arguments[..]].concat();
                Some(Running::Process(Process::start(&mayfly(), &arguments)?))
            }
        };
        Ok((running, ready))
    }
}

/// VM of an instance, which ends with this value.
pub enum Running {
    /// Process of its own.
    Process(#[allow(dead_code, reason = "its drop ends it")] Process),
    /// Shell with its connection.
    Shell(#[allow(dead_code, reason = "its drop ends it")] Shell),
}

/// Waiting shell.
pub struct Shell {
    #[allow(dead_code, reason = "its drop ends it")]
    process: Process,
    stream: UnixStream,
}

impl Shell {
    fn start(snapshot: &Path) -> io::Result<Self> {
        let _ = fs::remove_file(socket());
        let arguments = ["shell", &text(&socket()), "--for", &text(snapshot)];
        let process = Process::start(&mayfly(), &arguments)?;
        let stream = connect(&socket());
        Ok(Self { process, stream })
    }

    fn load(
        mut self,
        snapshot: &Path,
        arguments: &[&str],
        tap: OwnedFd,
        frames: OwnedFd,
    ) -> io::Result<Running> {
        let null = || File::open("/dev/null").map(OwnedFd::from);
        let files = ["state", "memory"].map(|name| snapshot.join(name));
        let open = |path: &PathBuf| Ok((path.clone(), File::open(path)?.into()));
        let request = Request {
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            standard: [null()?, null()?, null()?],
            is_detached: false,
            directory: File::open("/")?.into(),
            files: files.iter().map(open).collect::<io::Result<_>>()?,
            descriptors: vec![(TAP, tap), (FRAMES, frames)],
        };
        request.send(&mut self.stream).map_err(io::Error::other)?;
        Ok(Running::Shell(self))
    }
}

/// Duplicates `descriptor` to `number`, which child processes inherit.
fn inherit(descriptor: &OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer, and this program opens no file with the number.
    let duplicate = unsafe { libc::dup2(descriptor.as_raw_fd(), number) };
    if duplicate < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor has just been created; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}
