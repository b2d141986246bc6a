//! Attach to a running VM by its API socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::client::{Gdb, Stream};
use crate::api::http::NO_CONTENT;
use crate::api::served::{ApiProcess, PAUSED, RESUMED};
use crate::guests::program;

/// `mayfly ctl gdb`, as gdb runs it in a pipe.
struct Pipe {
    input: ChildStdin,
    output: ChildStdout,
    _child: scratch::KillOnDrop,
}

impl Pipe {
    fn start(process: &ApiProcess) -> Self {
        let mut command = ctl(process);
        let mut child: Child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: child.stdout.take().unwrap(),
            _child: scratch::KillOnDrop(child),
        }
    }

    /// Connects once an earlier debugger has detached: the reply to its last packet precedes the end of its session.
    fn connect(process: &ApiProcess) -> Self {
        scratch::wait_for("the end of the earlier session", || {
            let mut pipe = Self::start(process);
            // Acknowledged by the VM alone.
            let _ = pipe.input.write_all(b"$?#3f");
            let mut byte = [0];
            loop {
                match pipe.output.read(&mut byte) {
                    Ok(1) if byte[0] == b'#' => break,
                    Ok(1) => {}
                    _ => return None,
                }
            }
            // The checksum.
            pipe.output.read_exact(&mut [0; 2]).ok()?;
            pipe.input.write_all(b"+").ok()?;
            Some(pipe)
        })
    }
}

impl Stream for Pipe {
    // Its drop kills the child.
    fn end(&self) {}
}

impl Read for Pipe {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.output.read(bytes)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.flush()
    }
}

fn ctl(process: &ApiProcess) -> Command {
    let mut command = Command::new(program());
    command.args(["ctl", "gdb", "--api-sock"]).arg(process.socket());
    command
}

#[test]
fn running_vm_is_debugged_over_its_api_socket() {
    scratch::limited(|| {
        let process = ApiProcess::start();
        // The client does not wait for the socket.
        drop(process.connect());
        let refused = scratch::run(ctl(&process).stdin(Stdio::null()));
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && text.contains("the VM is not started"),
            "{text}"
        );
        process.set_kernel("loop.elf");
        process.run_action("InstanceStart");
        let mut gdb = Gdb::with(Pipe::connect(&process));
        let ip = gdb.ip();
        assert!(ip > 0);
        // Each call of KVM for registers.
        let registers = match cfg!(target_arch = "x86_64") {
            true => [
                ("r15", 7),
                ("fs_base", 0x1000),
                ("k_gs_base", 0x2000),
                ("fctrl", 0x33f),
            ],
            false => [
                ("x28", 7),
                ("TPIDR_EL0", 0x1000),
                ("VBAR_EL1", 0x2000),
                ("fpsr", 1),
            ],
        };
        for (name, value) in registers {
            gdb.set_register(name, value);
            assert_eq!(gdb.register(name), value, "{name}");
        }
        // KVM_SET_FPU lacks it.
        if cfg!(target_arch = "x86_64") {
            let value = gdb.register("mxcsr");
            let refused = gdb.try_register("mxcsr", value ^ 0x40);
            assert!(refused.starts_with('E'), "{refused}");
            gdb.set_register("mxcsr", value);
        }
        // The API serves a VM that its debugger has stopped, and one debugger alone.
        let refused = scratch::run(ctl(&process).stdin(Stdio::null()));
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(text.contains("another one is attached"), "{text}");
        let response = process.request("PUT", "/vm/debugger", "{}").text;
        assert!(response.contains("no header Upgrade"), "{response}");
        assert_eq!(process.state(), "Running");
        assert_eq!(process.request("PATCH", "/vm", PAUSED).text, NO_CONTENT);
        assert_eq!(gdb.ip(), ip);
        gdb.send("vCont;c");
        assert_eq!(process.request("PATCH", "/vm", RESUMED).text, NO_CONTENT);
        gdb.send_raw(&[3]);
        assert!(gdb.receive().starts_with("T02"));
        gdb.expect_ok("D");
        drop(gdb);
        // The next one.
        let mut gdb = Gdb::with(Pipe::connect(&process));
        assert!(gdb.request("?").starts_with("T05"));
        gdb.send("k");
        scratch::wait_until("the end of the VM", || !process.socket().exists());
    });
}

#[test]
fn crash_after_detach_ends_the_vm() {
    if cfg!(not(target_arch = "x86_64")) {
        // No exception ends a guest of aarch64.
        return;
    }
    scratch::limited(|| {
        let process = ApiProcess::start();
        process.set_kernel("loop.elf");
        process.run_action("InstanceStart");
        let mut gdb = Gdb::with(Pipe::connect(&process));
        // No page, and the guest handles no exception.
        gdb.set_register("rip", 0x7fff_ffff_f000);
        gdb.expect_ok("D");
        drop(gdb);
        // As Firecracker's; mayfly run has 120.
        let (_, error) = process.expect_exit(1);
        assert!(error.contains("triple fault"), "{error}");
    });
}

/// A process with Firecracker's command line ends with its status.
#[cfg(target_arch = "x86_64")]
#[test]
fn crash_of_process_like_firecracker_has_its_status() {
    use crate::guests::file;

    let mut process = ApiProcess::start();
    let source = format!(
        r#"{{"kernel_image_path":"{}","boot_args":"wait=1"}}"#,
        file("crash.elf")
    );
    process.expect_no_content("PUT", "/boot-source", &source);
    process.run_action("InstanceStart");
    process.expect("crashing\n");
    let mut gdb = Gdb::attach(&process.socket(), super::IN_MEMORY);
    // No page is there, and the guest handles no exception.
    gdb.set_register("rip", 0x7000_0000_0000);
    let stop = gdb.resume();
    assert!(stop.starts_with("T0b"), "{stop}");
    assert_eq!(gdb.resume(), "W01");
    process.expect_exit(1);
}

/// The thread of the debugger finds the orders to attach and to end together: otherwise the end waits a second for it.
#[test]
fn vm_ends_while_gdb_attaches() {
    let end = || {
        let mut process = ApiProcess::start();
        process.set_kernel("loop.elf");
        process.run_action("InstanceStart");
        process.expect("looping\n");
        let mut stream = UnixStream::connect(process.socket()).unwrap();
        write!(stream, "GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        // The event loop finds the request and the signal together, in this order.
        process.signal(libc::SIGSTOP);
        let header = "PUT /vm/debugger HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: gdb\r\nContent-Length: ";
        write!(
            stream,
            "{header}{}\r\n\r\n{}",
            super::IN_MEMORY.len(),
            super::IN_MEMORY
        )
        .unwrap();
        process.signal(libc::SIGTERM);
        let start = Instant::now();
        process.signal(libc::SIGCONT);
        process.end_by(libc::SIGTERM);
        start.elapsed()
    };
    let times: Vec<_> = (0..8).map(|_| end()).collect();
    // The shortest: the host may delay some of them.
    assert!(
        times.iter().any(|time| *time < Duration::from_millis(900)),
        "{times:?}"
    );
}
