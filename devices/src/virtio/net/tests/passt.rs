use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::stream::is_up;
use super::{READABLE, Rig, setup};
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::STATUS;
use crate::virtio::net::passt::{Error, Passt};
use crate::virtio::net::{Backend, HEADER};
use crate::virtio::testing::Piece;

/// A program that does what `lines` of a shell's say, in a folder of its own, which goes with this.
struct Program(PathBuf);

impl Program {
    fn new(name: &str, lines: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("mayfly-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("passt");
        fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    fn start(&self) -> (Passt, Rig) {
        let path = self.0.join("passt");
        // A test on another thread that forks while the program is written has it open until its exec.
        let started = (0..1000).find_map(|_| {
            let started = Passt::start_program(path.to_str().unwrap(), &[]);
            match started {
                Err(Error::Start(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now();
                    None
                }
                started => Some(started.unwrap()),
            }
        });
        let (passt, stream) = started.expect("the program is still being written");
        assert_eq!(stream.describe(), "passt");
        (passt, Rig::new(setup(Box::new(stream)), STATUS, [16, 16]))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Serves until the link is down.
fn await_end(rig: &mut Rig) {
    rig.add_buffer(2000);
    while is_up(rig) {
        rig.await_source(READABLE);
    }
}

#[test]
fn it_gets_its_socket_and_no_other_descriptor() {
    // Open, and not closed by an exec, as what this process was started with is.
    let null = File::open("/dev/null").unwrap();
    // SAFETY: the call takes no pointer.
    let leak = unsafe { libc::fcntl(null.as_raw_fd(), libc::F_DUPFD, 50) };
    assert!(leak >= 50);
    let folder = Program::new(
        "passt-descriptors",
        "ls -l /proc/$$/fd > $(dirname $0)/list; echo $* >> $(dirname $0)/list",
    );
    let (passt, mut rig) = folder.start();
    await_end(&mut rig);
    drop(passt);
    // SAFETY: it is this test's, and nobody uses it any more.
    unsafe { libc::close(leak) };
    let list = fs::read_to_string(folder.0.join("list")).unwrap();
    let (arguments, files) = {
        let mut lines: Vec<&str> = list.lines().collect();
        (lines.pop().unwrap(), lines)
    };
    let socket = arguments.strip_prefix("--foreground --quiet --fd ").unwrap();
    assert!(socket.parse::<u32>().unwrap() > 2, "{arguments}");
    assert!(!list.contains(&format!(" {leak} -> ")), "{list}");
    // The three standard ones and the socket, two of the shell's own, and a line with the sum.
    assert!(files.len() <= 7, "{list}");
    assert!(list.contains(&format!(" {socket} -> socket:")), "{list}");
}

#[test]
fn why_it_has_ended_is_told() {
    let folder = Program::new(
        "passt-ends",
        "echo \"Don't run as root\" >&2; echo 'no such option' >&2; exit 3",
    );
    let (mut passt, mut rig) = folder.start();
    await_end(&mut rig);
    assert_eq!(rig.line.take(), 1);
    // Its descriptors are closed before it can be waited for.
    let ended = loop {
        if let Err(ended) = passt.check() {
            break ended;
        }
        std::thread::yield_now();
    };
    assert_eq!(
        ended.to_string(),
        "passt has ended with exit status: 3: no such option"
    );
    rig.net.process_event(READABLE);
    assert_eq!(rig.line.take(), 0, "it is told once");
}

#[test]
fn it_may_not_be_started() {
    let error = Passt::start_program("/dev/null", &[]).err().unwrap();
    assert!(matches!(error, Error::Start(_)), "{error:?}");
}

#[test]
fn passt_is_not_installed() {
    let error = Passt::start_program("/nowhere/passt", &[]).err().unwrap();
    assert!(matches!(error, Error::Missing(_)));
    assert!(error.to_string().contains("apt install passt"));
}

#[test]
fn passt_answers() {
    let started = Passt::start(&[]);
    let (passt, stream) = started.expect("this test takes passt: apt install passt");
    let mut rig = Rig::new(setup(Box::new(stream)), STATUS, [16, 16]);
    let buffer = rig.add_buffer(2000);
    // An ARP request for some other address, as which passt always sees itself.
    let mut request = vec![0; HEADER];
    request.extend([0xff; 6]);
    request.extend(super::MAC);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(super::MAC);
    request.extend([0; 10]);
    request.extend([192, 0, 2, 77]);
    rig.add_packet(&request);
    rig.net.notify(1);
    // It may say other things first, about IPv6 for example.
    let mut frame = Vec::new();
    for _ in 0..10 {
        rig.await_source(READABLE);
        let used = rig.used(0);
        assert!(is_up(&rig), "passt has ended");
        if let Some(length) = used.first() {
            frame = rig.driver.read(buffer, usize::try_from(*length).unwrap());
            if frame[HEADER + 12..HEADER + 14] == [8, 6] {
                break;
            }
            let piece = Piece::writable(buffer, 2000);
            rig.driver.queues[0].add(&[piece]);
        }
    }
    assert_eq!(frame[HEADER + 20..HEADER + 22], [0, 2], "an ARP reply");
    drop(passt);
    rig.add_buffer(2000);
    rig.await_source(READABLE);
    assert!(!is_up(&rig), "passt ends with what it was started by");
}
