use std::fs::{self, File};
use std::os::fd::AsRawFd;

use scratch::{Directory, Requirement, require};

use super::stream::is_up;
use super::{Fixture, READABLE, setup};
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::STATUS;
use crate::virtio::net::passt::{Error, Passt};
use crate::virtio::net::{Backend, HEADER};
use crate::virtio::testing::Buffer;

/// Executable shell script in a directory of its own, which is removed on drop.
struct Program(Directory);

impl Program {
    fn new(lines: &str) -> Self {
        let directory = Directory::new();
        scratch::write_program(directory.path("passt"), &format!("#!/bin/sh\n{lines}\n"));
        Self(directory)
    }

    fn start(&self) -> (Passt, Fixture) {
        let (passt, stream) = Passt::start_program(&self.0.text("passt"), &[]).unwrap();
        assert_eq!(stream.describe(), "passt");
        (passt, Fixture::new(setup(Box::new(stream)), STATUS, [16, 16]))
    }
}

/// Processes events until the link is down.
fn await_link_down(fixture: &mut Fixture) {
    fixture.add_buffer(2000);
    while is_up(fixture) {
        fixture.await_event(READABLE);
    }
}

#[test]
fn passt_inherits_only_its_socket() {
    // Open without close-on-exec, like an inherited descriptor.
    let null = File::open("/dev/null").unwrap();
    // SAFETY: the call takes no pointer.
    let leak = unsafe { libc::fcntl(null.as_raw_fd(), libc::F_DUPFD, 50) };
    assert!(leak >= 50);
    let program = Program::new("ls -l /proc/$$/fd > $(dirname $0)/list; echo $* >> $(dirname $0)/list");
    let (passt, mut fixture) = program.start();
    await_link_down(&mut fixture);
    drop(passt);
    // SAFETY: the descriptor belongs to this test, and no other code uses it any more.
    unsafe { libc::close(leak) };
    let list = fs::read_to_string(program.0.path("list")).unwrap();
    let (arguments, files) = {
        let mut lines: Vec<&str> = list.lines().collect();
        (lines.pop().unwrap(), lines)
    };
    let socket = arguments.strip_prefix("--foreground --quiet --fd ").unwrap();
    assert!(socket.parse::<u32>().unwrap() > 2, "{arguments}");
    assert!(!list.contains(&format!(" {leak} -> ")), "{list}");
    // The three standard ones and the socket, two of the shell, and a line with the total.
    assert!(files.len() <= 7, "{list}");
    assert!(list.contains(&format!(" {socket} -> socket:")), "{list}");
}

#[test]
fn exit_of_passt_reports_cause() {
    let program = Program::new("echo \"Don't run as root\" >&2; echo 'no such option' >&2; exit 3");
    let (mut passt, mut fixture) = program.start();
    await_link_down(&mut fixture);
    assert_eq!(fixture.line.take(), 1);
    // The kernel closes the descriptors before the process can be waited for.
    let ended = scratch::wait_for("the end of passt", || passt.check().err());
    assert_eq!(
        ended.to_string(),
        "passt exited with exit status: 3: no such option"
    );
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.line.take(), 0, "the link change is notified once");
}

#[test]
fn start_of_non_executable_fails() {
    let error = Passt::start_program("/dev/null", &[]).err().unwrap();
    assert!(matches!(error, Error::Start(_)), "{error:?}");
}

#[test]
fn missing_passt_names_package() {
    let error = Passt::start_program("/nowhere/passt", &[]).err().unwrap();
    assert!(matches!(error, Error::Missing(_)));
    assert!(error.to_string().contains("apt install passt"));
}

#[test]
fn passt_replies_to_arp() {
    if !require(Requirement::Passt) {
        return;
    }
    let (passt, stream) = Passt::start(&[]).unwrap();
    let mut fixture = Fixture::new(setup(Box::new(stream)), STATUS, [16, 16]);
    let buffer = fixture.add_buffer(2000);
    // ARP request for another address: passt replies for every address.
    let mut request = vec![0; HEADER];
    request.extend([0xff; 6]);
    request.extend(super::MAC);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(super::MAC);
    request.extend([0; 10]);
    request.extend([192, 0, 2, 77]);
    fixture.add_packet(&request);
    fixture.net.notify(1);
    // passt can send other frames first, for example of IPv6.
    let mut frame = Vec::new();
    for _ in 0..10 {
        fixture.await_event(READABLE);
        let used = fixture.used(0);
        assert!(is_up(&fixture), "passt has exited");
        if let Some(length) = used.first() {
            frame = fixture.driver.read(buffer, usize::try_from(*length).unwrap());
            if frame[HEADER + 12..HEADER + 14] == [8, 6] {
                break;
            }
            fixture.driver.queues[0].add(&[Buffer::writable(buffer, 2000)]);
        }
    }
    assert_eq!(frame[HEADER + 20..HEADER + 22], [0, 2], "an ARP reply");
    drop(passt);
    fixture.add_buffer(2000);
    fixture.await_event(READABLE);
    assert!(!is_up(&fixture), "passt exits when it is dropped");
}
