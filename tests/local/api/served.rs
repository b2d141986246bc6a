//! mayfly processes with an API socket, and helpers of several tests.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::thread;
use std::time::Instant;

pub use scratch::Directory;

use super::http::{Client, NO_CONTENT, Response};
use crate::guest::{Running, TIMEOUT};
use crate::guests::{file, program};
use crate::network::{self, run_command};

pub const PAUSED: &str = r#"{"state":"Paused"}"#;
pub const RESUMED: &str = r#"{"state":"Resumed"}"#;

/// Creates the FIFO `name` in `directory` and returns its path.
pub fn create_fifo(directory: &Directory, name: &str) -> String {
    directory.fifo(name);
    directory.text(name)
}

/// Connects to the socket once its file exists. A connection that is then refused fails the test.
pub fn connect(socket: &Path) -> Client {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match Client::connect(socket) {
            Ok(client) => return client,
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                thread::yield_now();
            }
            Err(error) => panic!("{}: {error}", socket.display()),
        }
    }
}

/// A running mayfly process with a directory. Drop kills the process and removes the directory.
pub struct ApiProcess {
    pub directory: Directory,
    running: Running,
}

impl ApiProcess {
    /// Starts mayfly with an API socket and no other option.
    pub fn start() -> Self {
        Self::start_with(Directory::new(), &[])
    }

    /// Starts mayfly with an API socket and no other option, and a pipe as its input.
    pub fn start_with_input() -> (Self, ChildStdin) {
        let directory = Directory::new();
        let mut command = Command::new(program());
        command.args(["--api-sock", &directory.text("api.sock")]);
        let mut running = Running::start(command.stdin(Stdio::piped()));
        let input = running.take_input().unwrap();
        (Self { directory, running }, input)
    }

    /// Starts mayfly with an API socket in `directory` and with more `flags`.
    pub fn start_with(directory: Directory, flags: &[&str]) -> Self {
        let socket = directory.text("api.sock");
        let flags = [&["--api-sock", &socket], flags].concat();
        Self::spawn(directory, Command::new(program()).args(flags))
    }

    /// Starts `command`.
    pub fn spawn(directory: Directory, command: &mut Command) -> Self {
        command.stdin(Stdio::null());
        let running = Running::start(command);
        Self { directory, running }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path("api.sock")
    }

    pub fn id(&self) -> u32 {
        self.running.id()
    }

    /// Connects to the socket once its file exists.
    pub fn connect(&self) -> Client {
        scratch::wait_until("the socket", || {
            self.running.expect_alive();
            self.socket().exists()
        });
        connect(&self.socket())
    }

    /// Sends one request on a new connection and returns the response.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Response {
        self.connect().request(method, path, body)
    }

    /// Sends a request and expects the 204 response, byte for byte.
    pub fn expect_no_content(&self, method: &str, path: &str, body: &str) {
        assert_eq!(
            self.request(method, path, body).text,
            NO_CONTENT,
            "{method} {path} {body}"
        );
    }

    /// Sets the guest `name` as the kernel image.
    pub fn set_kernel(&self, name: &str) {
        let body = format!("{{\"kernel_image_path\":\"{}\"}}", file(name));
        self.expect_no_content("PUT", "/boot-source", &body);
    }

    pub fn run_action(&self, action: &str) {
        self.expect_no_content("PUT", "/actions", &format!("{{\"action_type\":\"{action}\"}}"));
    }

    pub fn state(&self) -> String {
        self.request("GET", "/", "").json()["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits until the guest prints `text`, after the last expected text.
    pub fn expect(&mut self, text: &str) {
        self.running.expect(text);
    }

    /// Returns the rest of the line after the last expected text.
    pub fn read_line(&mut self) -> String {
        self.running.expect("\n")
    }

    pub fn signal(&mut self, signal: libc::c_int) {
        self.running.signal(signal);
    }

    /// Waits for exit with `code`; the socket file must be removed. Returns the guest's output and mayfly's stderr.
    pub fn expect_exit(mut self, code: i32) -> (String, String) {
        self.running.expect_exit(code);
        assert!(!self.socket().exists(), "the socket file still exists");
        (self.running.take_printed(), self.running.read_stderr())
    }

    /// Waits for exit with `code`, where the socket file may remain. Returns mayfly's stderr.
    pub fn expect_abort(mut self, code: i32) -> String {
        self.running.expect_exit(code);
        self.running.read_stderr()
    }

    /// Sends `signal`, which must end the process. Returns mayfly's stderr.
    pub fn end_by(mut self, signal: libc::c_int) -> String {
        self.running.signal(signal);
        self.running.expect_signal(signal);
        self.running.read_stderr()
    }

    /// Sends SIGTERM, which must end the process and remove the socket file.
    pub fn terminate(mut self) {
        self.running.terminate();
        assert!(!self.socket().exists(), "the socket file still exists");
    }

    /// Sends SIGKILL. Returns the guest's output.
    pub fn kill(mut self) -> String {
        self.running.kill();
        self.running.take_printed()
    }
}

/// Starts the ticker and waits for three lines.
pub fn start_ticker() -> ApiProcess {
    let mut process = ApiProcess::start();
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    process.expect("tick 3\n");
    process
}

/// Requests a snapshot in the files `state` and `memory` of `directory`.
pub fn create_snapshot(
    process: &ApiProcess,
    directory: &Directory,
    kind: &str,
    state: &str,
    memory: &str,
) -> Response {
    let (state, memory) = (directory.text(state), directory.text(memory));
    let body =
        format!(r#"{{"snapshot_type":"{kind}","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
    process.request("PUT", "/snapshot/create", &body)
}

/// Pauses the guest and creates a snapshot in the files `state` and `memory` of `directory`.
pub fn pause_and_create(process: &ApiProcess, directory: &Directory, kind: &str, state: &str, memory: &str) {
    process.expect_no_content("PATCH", "/vm", PAUSED);
    let response = create_snapshot(process, directory, kind, state, memory);
    assert_eq!(response.text, NO_CONTENT, "{kind}");
    assert_eq!(process.state(), "Paused");
}

/// Returns the body that loads a snapshot, with more `fields`.
pub fn load_body(directory: &Directory, state: &str, memory: &str, fields: &str) -> String {
    let (state, memory) = (directory.text(state), directory.text(memory));
    let backend = format!(r#"{{"backend_type":"File","backend_path":"{memory}"}}"#);
    format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend}{fields}}}"#)
}

/// Starts mayfly and loads a snapshot.
pub fn load_snapshot(directory: &Directory, state: &str, memory: &str, fields: &str) -> ApiProcess {
    let process = ApiProcess::start();
    process.expect_no_content(
        "PUT",
        "/snapshot/load",
        &load_body(directory, state, memory, fields),
    );
    process
}

/// Returns the number of complete lines of a ticker. No line may be missing or repeated; the last may be incomplete.
pub fn count_ticks(printed: &str) -> usize {
    let (complete, rest) = printed.rsplit_once('\n').unwrap();
    let lines = complete.lines().count();
    for (index, line) in complete.lines().enumerate() {
        assert_eq!(line, format!("tick {}", index + 1), "{printed}");
    }
    assert!(format!("tick {}\n", lines + 1).starts_with(rest), "{printed}");
    lines
}

/// Expects three lines more than `printed` has, and kills mayfly. Returns all output, including `printed`.
pub fn expect_progress(mut process: ApiProcess, printed: String) -> String {
    process.expect(&format!("tick {}\n", count_ticks(&printed) + 3));
    let all = printed + &process.kill();
    count_ticks(&all);
    all
}

/// Leaves a socket at `path` on which no process listens.
pub fn create_stale_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    // A child that another test has started may hold the listener until its execve.
    scratch::wait_until("the end of the listener", || UnixStream::connect(path).is_err());
}

/// Creates the tap `name` and sets it up.
pub fn create_tap(name: &str) {
    network::create_tap(name, 0, None);
    run_command(&format!("ip link set {name} up"));
}

/// Creates the tap `name` with the address of the host.
pub fn create_tap_with_address(name: &str) {
    create_tap(name);
    run_command(&format!("ip addr add 10.0.0.1/24 dev {name}"));
    network::repeat_arp(name);
}
