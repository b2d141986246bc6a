//! Client of gdb's remote protocol.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::guest::TIMEOUT;

/// Stream to mayfly.
pub trait Stream: Read + Write {
    /// Disconnects.
    fn end(&self);
}

// Until its execve, a child that another test starts has all descriptors of this process: a close alone would not disconnect.
impl Stream for UnixStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Stream for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// Connected debugger.
pub struct Gdb {
    stream: Box<dyn Stream>,
    /// Names and bytes of the registers, from the target description.
    registers: Vec<(String, Range<usize>)>,
}

impl Gdb {
    /// Connects to the Unix socket at `path`.
    pub fn connect(path: &Path) -> Self {
        let stream = scratch::wait_for("the socket for gdb", || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self::with(stream)
    }

    /// Connects to a port of this host.
    pub fn connect_port(port: u16) -> Self {
        let stream = scratch::wait_for("the port for gdb", || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self::with(stream)
    }

    /// Attaches to the VM behind the API socket at `path`, on a host whose means are `abilities`.
    pub fn attach(path: &Path, abilities: &str) -> Self {
        Self::try_attach(path, abilities).expect("no other debugger")
    }

    /// As [`attach`](Self::attach). `None` while another debugger is attached.
    pub fn try_attach(path: &Path, abilities: &str) -> Option<Self> {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let header =
            "PUT /vm/debugger HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: gdb\r\nContent-Length: ";
        write!(stream, "{header}{}\r\n\r\n{abilities}", abilities.len()).unwrap();
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            response.push(byte[0]);
        }
        response.starts_with(b"HTTP/1.1 101").then(|| Self::with(stream))
    }

    /// Begins a session on `stream`.
    pub fn with(stream: impl Stream + 'static) -> Self {
        let mut gdb = Self {
            stream: Box::new(stream),
            registers: Vec::new(),
        };
        let features = gdb.request("qSupported:swbreak+;hwbreak+;vContSupported+;xmlRegisters=i386");
        assert!(features.contains("qXfer:features:read+"), "{features}");
        gdb.read_description();
        gdb
    }

    fn read_description(&mut self) {
        let mut text = String::new();
        loop {
            let part = self.request(&format!("qXfer:features:read:target.xml:{:x},400", text.len()));
            text.push_str(&part[1..]);
            if part.starts_with('l') {
                break;
            }
        }
        let mut start = 0;
        for register in text.split("<reg ").skip(1) {
            let value = |key: &str| {
                let (_, rest) = register.split_once(&format!("{key}=\"")).unwrap();
                rest.split('"').next().unwrap().to_owned()
            };
            let end = start + value("bitsize").parse::<usize>().unwrap() / 8;
            self.registers.push((value("name"), start..end));
            start = end;
        }
    }

    /// Sends a packet.
    pub fn send(&mut self, text: &str) {
        let sum = text.bytes().fold(0_u8, u8::wrapping_add);
        self.send_raw(format!("${text}#{sum:02x}").as_bytes());
    }

    /// Sends bytes that are no packet.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Receives a packet, with repeated characters expanded.
    pub fn receive(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut text: Vec<u8> = Vec::new();
        loop {
            match self.byte() {
                b'#' => break,
                b'*' => {
                    let count = self.byte() - 29;
                    let last = *text.last().unwrap();
                    text.extend(std::iter::repeat_n(last, count.into()));
                }
                byte => text.push(byte),
            }
        }
        let _ = (self.byte(), self.byte());
        // Fails after the last packet of a VM that has ended.
        let _ = self.stream.write_all(b"+");
        String::from_utf8(text).unwrap()
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap();
        byte[0]
    }

    /// Sends a packet and returns the reply.
    pub fn request(&mut self, text: &str) -> String {
        self.send(text);
        self.receive()
    }

    /// Sends a packet, which must have the reply `OK`.
    pub fn expect_ok(&mut self, text: &str) {
        assert_eq!(self.request(text), "OK", "{text}");
    }

    /// Resumes all vCPUs and returns the next stop.
    pub fn resume(&mut self) -> String {
        self.request("vCont;c")
    }

    /// Executes one instruction of `thread`, while the others wait.
    pub fn step(&mut self, thread: usize) {
        let stop = self.request(&format!("vCont;s:{thread:x}"));
        assert!(stop.starts_with("T05"), "{stop}");
    }

    /// Selects the thread for registers and memory.
    pub fn select(&mut self, thread: usize) {
        self.expect_ok(&format!("Hg{thread:x}"));
    }

    /// Returns the register `name`, of at most 64 bits.
    pub fn register(&mut self, name: &str) -> u64 {
        let number = self.number(name);
        let single = parse_hex(&self.request(&format!("p{number:x}")));
        let all = parse_hex(&self.request("g"));
        assert_eq!(all[self.registers[number].1.clone()], single, "{name}");
        single
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Sets the register `name` of at most 64 bits.
    pub fn set_register(&mut self, name: &str, value: u64) {
        assert_eq!(self.try_register(name, value), "OK", "{name}");
    }

    /// As [`set_register`](Self::set_register), but returns the reply.
    pub fn try_register(&mut self, name: &str, value: u64) -> String {
        let number = self.number(name);
        let length = self.registers[number].1.len();
        let digits = hex(&value.to_le_bytes()[..length]);
        self.request(&format!("P{number:x}={digits}"))
    }

    fn number(&self, name: &str) -> usize {
        let found = self.registers.iter().position(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no register {name}"))
    }

    /// Returns the instruction pointer.
    pub fn ip(&mut self) -> u64 {
        self.register(if cfg!(target_arch = "x86_64") { "rip" } else { "pc" })
    }

    /// Returns the first argument of a function at its first instruction.
    pub fn argument(&mut self) -> u64 {
        self.register(if cfg!(target_arch = "x86_64") { "rdi" } else { "x0" })
    }

    /// Returns a word of 64 bits in memory.
    pub fn word(&mut self, address: u64) -> u64 {
        let bytes = parse_hex(&self.request(&format!("m{address:x},8")));
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Sets a word of 64 bits in memory.
    pub fn set_word(&mut self, address: u64, value: u64) {
        let digits = hex(&value.to_le_bytes());
        self.expect_ok(&format!("M{address:x},8:{digits}"));
    }

    /// Sets a breakpoint of gdb's kind 0, in memory or hardware.
    pub fn set_breakpoint(&mut self, address: u64) -> String {
        self.request(&breakpoint("Z0", address))
    }

    /// Removes a breakpoint.
    pub fn remove_breakpoint(&mut self, address: u64) {
        self.expect_ok(&breakpoint("z0", address));
    }

    /// Executes a monitor command and returns its output.
    pub fn monitor(&mut self, command: &str) -> String {
        self.send(&format!("qRcmd,{}", hex(command.as_bytes())));
        let mut output = Vec::new();
        loop {
            let reply = self.receive();
            match reply.strip_prefix('O') {
                Some("K") => return String::from_utf8(output).unwrap(),
                Some(digits) => output.extend(parse_hex(digits)),
                None => panic!("{command}: {reply}"),
            }
        }
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        self.stream.end();
    }
}

/// Returns the packet `operation` for a breakpoint at `address`.
fn breakpoint(operation: &str, address: u64) -> String {
    let length = if cfg!(target_arch = "x86_64") { 1 } else { 4 };
    format!("{operation},{address:x},{length}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    let digits = |place: usize| u8::from_str_radix(&text[place..place + 2], 16);
    (0..text.len())
        .step_by(2)
        .map(|place| digits(place).unwrap_or_else(|_| panic!("{text:?} is not hexadecimal")))
        .collect()
}

/// Returns the address of the symbol `name` in the ELF file at `path`.
pub fn symbol(path: &str, name: &str) -> u64 {
    let file = fs::read(path).unwrap();
    let number = |place: usize, length: usize| {
        let bytes = file[place..place + length].iter().rev();
        bytes.fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let place = |value: u64| usize::try_from(value).unwrap();
    // Headers of the ELF format: sections, their types, and the symbols in them.
    let (sections, size, count) = (
        place(number(0x28, 8)),
        place(number(0x3a, 2)),
        place(number(0x3c, 2)),
    );
    let section = |index: usize| {
        let header = sections + index * size;
        (
            number(header + 4, 4),
            place(number(header + 0x18, 8)),
            place(number(header + 0x20, 8)),
            place(number(header + 0x28, 4)),
        )
    };
    let (_, start, length, names) = (0..count).map(section).find(|(kind, ..)| *kind == 2).unwrap();
    let (_, names, ..) = section(names);
    let found = (start..start + length).step_by(24).find(|symbol| {
        let own = &file[names + place(number(*symbol, 4))..];
        own.starts_with(name.as_bytes()) && own[name.len()] == 0
    });
    number(found.unwrap_or_else(|| panic!("no symbol {name}")) + 8, 8)
}
