//! Debian's Linux as the guest, frozen, killed and restored again and again while it writes and hashes files and holds a TCP
//! connection. What the guest does is `work` of guest-virtio.sh.
//!
//! The drive's file is no part of a snapshot. It fits the snapshot that was taken last, as long as nothing ran since: the guest
//! is paused, frozen and killed without going on.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use crate::guest::{self, Guest, LIMIT};
use crate::virtio::{
    IMAGE, check, connection, content, make_image, make_tap, raise_tap, remove_tap, start, sum_of, task, text,
};

#[path = "../../resources/uffd-handler/handler.rs"]
mod handler;

/// How often the guest goes through it, on the machine that most have.
const TIMES: usize = 50;
/// And on others.
const FEWER: usize = 10;
/// Once through [`MIXED`].
const ONCE: usize = MIXED.len();
/// Of the same memory, a difference takes a tenth of the time here that a whole snapshot takes.
const MIXED: &[&str] = &["Full", "Diff", "Diff", "Diff", "Diff"];
/// How long it may take to hear from the guest, in seconds: so much may its clock seem to be ahead.
const SLACK: f64 = 5.0;
const SOCKET: &str = "/tmp/api";
const FOLDER: &str = "/tmp/frozen";
/// Where the handler of page faults listens.
const PAGES: &str = "/tmp/pages";
/// What goes to and fro at a time, in bytes: it takes longer than it takes to pause the guest.
const ECHOED: usize = 512 << 10;
/// The guest keeps this many of the files that it has written last.
const KEPT: usize = 4;

scenarios! {
    restored_while_it_works => works(&Case { times: TIMES, kinds: MIXED, ..USUAL });
    restored_while_two_cpus_work => works(&Case { options: "--cpus 2", ..USUAL });
    restored_with_interrupts_by_the_kernel => works(&Case { options: "--irqchip kernel", ..USUAL });
    restored_with_its_drive_by_io_uring => works(&Case { drive: ",engine=async", times: ONCE, kinds: MIXED, ..USUAL });
    // Only the first snapshot is whole: one of a guest that is served asks the handler for all pages, each by itself.
    restored_page_by_page => works(&Case { is_served: true, times: ONCE, kinds: MIXED, ..USUAL });
}

/// A guest and how it is frozen.
struct Case {
    times: usize,
    /// The snapshots, one after the other and then again.
    kinds: &'static [&'static str],
    /// What is said of the drive.
    drive: &'static str,
    /// What else is said.
    options: &'static str,
    /// Whether a handler of page faults has its memory.
    is_served: bool,
}

const USUAL: Case = Case {
    times: FEWER,
    kinds: &["Full"],
    drive: "",
    options: "",
    is_served: false,
};

/// The guest is frozen again and again, and notices nothing.
fn works(case: &Case) {
    let &Case {
        times,
        kinds,
        drive,
        options,
        is_served,
    } = case;
    make_image(&[]);
    make_tap();
    raise_tap();
    let mut guest = start(&format!(
        "--disk {IMAGE},cache=writeback{drive} --net tap:tap0 --api-sock {SOCKET} {options}"
    ));
    task(&mut guest, "interface");
    let (send, wanted) = channel();
    let (echo, echoes) = channel();
    let connection = connection(5003, move |stream| talk(&stream, &wanted, &echo));
    guest.type_line("virtio work &");

    let mut files = vec![written(&mut guest)];
    let begun = Instant::now();
    let (mut writes, mut sends) = (0, 0);
    for time in 1..=times {
        let _ = send.send(());
        guest.expect("begins ");
        guest.expect(" end");
        freeze(&mut guest, kinds[(time - 1) % kinds.len()]);
        let returned = echoes.try_recv().is_ok();
        guest = if is_served {
            restore_served(guest)
        } else {
            restore(guest)
        };
        sends += usize::from(!returned);
        // All that it printed until it was killed is here; of what it prints from now on, nothing needs to be.
        writes += usize::from(!guest.rest().contains("wrote "));
        files.push(written(&mut guest));
        if !returned && echoes.recv_timeout(LIMIT).is_err() {
            guest.fail("nothing comes back over its connection");
        }
        println!("restored {time} of {times} times");
    }
    println!("in the middle of writing {writes} times, of sending {sends} times");
    assert!(writes > 0 && sends > 0, "it was never in the middle");

    drop(send);
    if let Err(error) = connection.recv_timeout(LIMIT).unwrap() {
        guest.fail(&format!("the connection is broken: {error}"));
    }
    let ran = files[times].time - files[0].time;
    assert!(
        ran <= begun.elapsed().as_secs_f64() + SLACK,
        "its clock went {ran} s ahead"
    );
    ends_well(guest, &files);
    remove_tap();
    fs::remove_dir_all(FOLDER).unwrap();
}

/// The clock has gone on, the kernel has nothing to complain about, and what was written is on the drive.
fn ends_well(mut guest: Guest, files: &[File]) {
    for pair in files.windows(2) {
        assert!(pair[0].time < pair[1].time, "the clock stands still");
    }
    guest.type_line("touch /stop");
    guest.expect("virtio: ");
    let complaints = guest.expect(" end");
    if complaints.trim() != "ok" {
        guest.fail("its kernel complains");
    }
    let times = task(&mut guest, "clock");
    let (before, after) = times.split_once(' ').unwrap();
    let slept = seconds(after) - seconds(before);
    assert!(
        (1.0..LIMIT.as_secs_f64()).contains(&slept),
        "a second took {slept}"
    );
    guest.type_line("poweroff -f");
    let printed = guest.ends_with(0);

    let (code, said) = check(&["-f", "-n"]);
    assert_eq!(code, 0, "e2fsck: {said}");
    let all: Vec<&str> = printed
        .split("wrote ")
        .skip(1)
        .filter_map(|line| line.split_once(" end").map(|(line, _)| line))
        .collect();
    for (number, line) in all.iter().enumerate() {
        let file = File::parse(line);
        assert_eq!(file.number, number, "a line was lost or doubled");
        if number + KEPT >= all.len() {
            assert_eq!(
                sum_of(&content(&file.number.to_string())),
                file.sum,
                "file {number}"
            );
        }
    }
}

/// What the guest says of a file that it has written and read again.
struct File {
    number: usize,
    sum: String,
    /// In seconds since the guest's start.
    time: f64,
}

impl File {
    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        Self {
            number: words[0].parse().unwrap(),
            sum: words[1].to_owned(),
            time: seconds(words[2]),
        }
    }
}

fn seconds(text: &str) -> f64 {
    text.parse().unwrap()
}

/// The next file that the guest has written.
fn written(guest: &mut Guest) -> File {
    guest.expect("wrote ");
    File::parse(&guest.expect(" end"))
}

/// Sends something whenever it is `wanted`, and has it come back in its order; says so by `echo`.
fn talk(mut stream: &TcpStream, wanted: &Receiver<()>, echo: &Sender<()>) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut received = vec![0; ECHOED];
    let mut numbers = 0_u32..;
    while wanted.recv().is_ok() {
        let sent: Vec<u8> = numbers
            .by_ref()
            .take(ECHOED / size_of::<u32>())
            .flat_map(u32::to_le_bytes)
            .collect();
        thread::scope(|scope| {
            // The guest stops reading as long as nobody takes what comes back.
            let writing = scope.spawn(|| (&*stream).write_all(&sent));
            stream.read_exact(&mut received)?;
            writing.join().unwrap()
        })?;
        if received != sent {
            return Err(io::Error::other("what comes back is not what was sent"));
        }
        // Nobody waits for it when the scenario has failed.
        let _ = echo.send(());
    }
    Ok(())
}

/// Pauses the guest and makes a snapshot of this kind.
fn freeze(guest: &mut Guest, kind: &str) {
    fs::create_dir_all(FOLDER).unwrap();
    ask(guest, "PATCH", "/vm", r#"{"state":"Paused"}"#);
    let body = format!(
        r#"{{"snapshot_type":"{kind}","snapshot_path":"{FOLDER}/state","mem_file_path":"{FOLDER}/memory"}}"#
    );
    ask(guest, "PUT", "/snapshot/create", &body);
    // Its owner is about to be killed, and the next one to listen there.
    fs::remove_file(SOCKET).unwrap();
}

fn restore(guest: Guest) -> Guest {
    guest.restart(&format!("restore {FOLDER} --api-sock {SOCKET}"))
}

/// Has the guest go on with the pages that a handler gives it.
fn restore_served(guest: Guest) -> Guest {
    let _ = fs::remove_file(PAGES);
    let listener = UnixListener::bind(PAGES).unwrap();
    // What a difference is written into while the guest is served has what was served already.
    let memory = fs::File::open(format!("{FOLDER}/memory")).unwrap();
    thread::spawn(move || {
        let (monitor, _) = listener.accept()?;
        // Served until it is killed.
        handler::serve(&monitor, &memory)
    });
    let mut guest = guest.restart(&format!("--api-sock {SOCKET}"));
    let begin = Instant::now();
    while !Path::new(SOCKET).exists() {
        if begin.elapsed() > LIMIT {
            guest.fail("its socket is not there");
        }
        thread::yield_now();
    }
    let body = format!(
        r#"{{"snapshot_path":"{FOLDER}/state","mem_backend":{{"backend_type":"Uffd","backend_path":"{PAGES}"}},"resume_vm":true}}"#
    );
    ask(&mut guest, "PUT", "/snapshot/load", &body);
    guest
}

fn ask(guest: &mut Guest, method: &str, path: &str, body: &str) {
    let patience = LIMIT.as_secs().to_string();
    let output = guest::mayfly()
        .args(["ctl", "--api-sock", SOCKET, "--timeout", &patience])
        .args(["request", method, path, body])
        .output()
        .unwrap();
    if !output.status.success() {
        guest.fail(&format!("{method} {path}: {}", text(&output)));
    }
}
