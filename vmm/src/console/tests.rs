use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use scratch::Limited;

use super::history::CAPACITY;
use super::relay::MAX_CLIENTS;
use super::{Error, SerialEnd};
use crate::config::SerialTarget;
use crate::vm::Console;

/// Limit of a read that fails instead of a test that hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Console with a Unix socket.
struct Fixture {
    console: Console,
    path: PathBuf,
    end: SerialEnd,
    _directory: scratch::Directory,
}

impl Fixture {
    fn new() -> Self {
        let directory = scratch::Directory::new();
        let path = directory.path("console");
        let end = SerialEnd::open(&SerialTarget::Unix(path.clone()))
            .unwrap()
            .unwrap();
        Self {
            console: end.console().unwrap(),
            path,
            end,
            _directory: directory,
        }
    }

    /// Console with a pseudoterminal.
    fn with_terminal() -> Self {
        let end = SerialEnd::open(&SerialTarget::Pty).unwrap().unwrap();
        Self {
            console: end.console().unwrap(),
            path: PathBuf::new(),
            end,
            _directory: scratch::Directory::new(),
        }
    }

    fn attach(&self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client
    }

    /// Prints as the guest does, and waits until the buffer of the port is empty.
    fn print(&mut self, bytes: &[u8]) {
        let output = &mut self.console.output;
        for chunk in bytes.chunks(1024) {
            output.write(chunk);
            scratch::wait_until("an empty buffer", || {
                output.flush();
                output.buffered_bytes() == 0
            });
        }
    }

    /// Returns the next `count` bytes of input of the guest.
    fn input(&mut self, count: usize) -> Vec<u8> {
        let mut input = File::from(self.console.input.as_ref().unwrap().try_clone().unwrap());
        let mut bytes = Vec::new();
        scratch::wait_until("input", || {
            let mut chunk = vec![0; count - bytes.len()];
            match input.read(&mut chunk) {
                Ok(length) => bytes.extend_from_slice(&chunk[..length]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            bytes.len() == count
        });
        bytes
    }
}

fn expect(client: &mut impl Read, text: &[u8]) {
    let mut bytes = vec![0; text.len()];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, text, "{:?}", String::from_utf8_lossy(&bytes));
}

fn read_to_end(mut client: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn each_client_receives_last_output_first() {
    let mut fixture = Fixture::new();
    fixture.print(b"one ");
    let mut first = fixture.attach();
    expect(&mut first, b"one ");
    fixture.print(b"two ");
    expect(&mut first, b"two ");
    let mut second = fixture.attach();
    expect(&mut second, b"one two ");
    drop(first);
    fixture.print(b"three");
    expect(&mut second, b"three");
    let Fixture {
        console, path, end, ..
    } = fixture;
    assert_eq!(end.name(), format!("unix:{}", path.display()));
    drop((console, end));
    assert_eq!(read_to_end(second), b"");
    assert!(!path.exists());
}

#[test]
fn new_client_receives_64_kib() {
    let mut fixture = Fixture::new();
    let text: Vec<u8> = (0..253).cycle().take(3 * CAPACITY).collect();
    let mut first = Limited(fixture.attach());
    for chunk in text.chunks(1024) {
        fixture.print(chunk);
        // The relay has it then.
        expect(&mut first, chunk);
    }
    let mut client = Limited(fixture.attach());
    let mut bytes = vec![0; CAPACITY];
    client.read_exact(&mut bytes).unwrap();
    assert!(bytes == text[2 * CAPACITY..]);
}

#[test]
fn input_of_one_client_at_a_time_reaches_guest() {
    let mut fixture = Fixture::new();
    let mut first = fixture.attach();
    let mut second = fixture.attach();
    first.write_all(b"first").unwrap();
    assert_eq!(fixture.input(5), b"first");
    second.write_all(b"lost").unwrap();
    expect(
        &mut second,
        b"\r\n[mayfly: another client has the input until it detaches",
    );
    first.write_all(b"again").unwrap();
    assert_eq!(fixture.input(5), b"again");
    // The first client ends its input, and still receives output.
    first.shutdown(Shutdown::Write).unwrap();
    fixture.print(b"seen");
    expect(&mut first, b"seen");
    let mut third = fixture.attach();
    third.write_all(b"third").unwrap();
    assert_eq!(fixture.input(5), b"third");
}

#[test]
fn input_of_detached_client_waits_for_guest() {
    let mut fixture = Fixture::new();
    // More than the relay buffers: the rest stays in the socket of the client.
    let text: Vec<u8> = (0..251).cycle().take(40_000).collect();
    let mut client = fixture.attach();
    client.set_write_timeout(Some(LIMIT)).unwrap();
    client.write_all(&text).unwrap();
    drop(client);
    // The guest prints meanwhile, which shows that the client has detached. Input of the next client follows.
    let mut next = Limited(fixture.attach());
    next.write_all(b"next").unwrap();
    fixture.print(b"output");
    expect(&mut next, b"output");
    assert!(fixture.input(text.len()) == text);
    assert_eq!(fixture.input(4), b"next");
}

#[test]
fn input_of_short_clients_keeps_its_order() {
    let mut fixture = Fixture::new();
    // With those of the last round, which may still be attached, fewer than clients can attach.
    for _ in 0..200 {
        for byte in b"01234" {
            let mut client = fixture.attach();
            client.write_all(&[*byte]).unwrap();
            // A drop would leave it attached while a child of another test has a duplicate of the descriptor.
            client.shutdown(Shutdown::Both).unwrap();
        }
        assert_eq!(fixture.input(5), b"01234");
    }
}

#[test]
fn stalled_client_delays_neither_guest_nor_others() {
    let mut fixture = Fixture::new();
    let mut stalled = Limited(fixture.attach());
    let mut active = Limited(fixture.attach());
    let text = vec![b'x'; 1024];
    // More than the socket of the stalled client and the history hold.
    for _ in 0..1024 {
        fixture.print(&text);
        expect(&mut active, &text);
    }
    // Each byte is received, or in the number of a message.
    let mut received = String::new();
    scratch::wait_until("the rest of the output", || {
        let mut bytes = [0; 4096];
        let count = stalled.read(&mut bytes).unwrap();
        received.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        let lost = received
            .split_once("[mayfly: dropped ")
            .and_then(|(_, rest)| rest.split_once(' '));
        let lost = lost.map_or(0, |(lost, _)| lost.parse::<usize>().unwrap());
        lost > 0 && lost + received.matches('x').count() == 1 << 20
    });
}

#[test]
fn excess_client_is_rejected() {
    let mut fixture = Fixture::new();
    fixture.print(b"x");
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| fixture.attach()).collect();
    clients.iter_mut().for_each(|client| expect(client, b"x"));
    let text = String::from_utf8(read_to_end(fixture.attach())).unwrap();
    assert_eq!(text, "\r\n[mayfly: 16 clients are attached; detach one]\r\n");
    clients.pop();
    // The relay may not have noticed the detached client yet.
    scratch::wait_until("room for a client", || {
        let mut byte = [0];
        fixture.attach().read_exact(&mut byte).unwrap();
        byte == *b"x"
    });
}

#[test]
fn console_opens_again_after_failed_start() {
    let mut fixture = Fixture::new();
    fixture.console = fixture.end.console().unwrap();
    fixture.print(b"again");
    expect(&mut fixture.attach(), b"again");
}

#[test]
fn socket_in_use_is_rejected() {
    let fixture = Fixture::new();
    let target = SerialTarget::Unix(fixture.path.clone());
    let error = SerialEnd::open(&target).err().unwrap();
    assert!(matches!(error, Error::InUse(_)), "{error}");
}

/// Opens a terminal without making it the controlling one.
fn open_terminal(end: &SerialEnd) -> Limited<File> {
    let name = end.name();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    Limited(options.open(name.strip_prefix("pty:").unwrap()).unwrap())
}

#[test]
fn terminal_is_attached_whenever_program_opens_it() {
    let mut fixture = Fixture::with_terminal();
    fixture.print(b"one\n");
    let mut terminal = open_terminal(&fixture.end);
    expect(&mut terminal, b"one\n");
    terminal.0.write_all(b"key").unwrap();
    // Neither echoed nor kept until a line ends.
    assert_eq!(fixture.input(3), b"key");
    drop(terminal);
    fixture.print(b"two\n");
    let mut terminal = open_terminal(&fixture.end);
    // The relay may not have noticed that the terminal was closed.
    expect(&mut terminal, b"");
    let mut bytes = Vec::new();
    scratch::wait_until("the output meanwhile", || {
        let mut byte = [0];
        terminal.read_exact(&mut byte).unwrap();
        bytes.extend(byte);
        bytes.ends_with(b"two\n")
    });
}

#[test]
fn input_of_closed_terminal_reaches_guest() {
    let mut fixture = Fixture::with_terminal();
    for _ in 0..100 {
        let mut terminal = open_terminal(&fixture.end);
        terminal.0.write_all(b"key").unwrap();
        drop(terminal);
        assert_eq!(fixture.input(3), b"key");
    }
}
