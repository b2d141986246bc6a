use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{Error, FaultHandler, describe, map_uffd};
use crate::GuestMemory;
use crate::boot::testing::Temporary;
use crate::memory::{dump, memfd, page_size};

/// The example: what runs here is what others start from.
#[path = "../../../../resources/uffd-handler/handler.rs"]
mod handler;

/// After this, who waits does so for ever.
const LIMIT: Duration = Duration::from_secs(60);
const HIGH: u64 = 1 << 32;

fn page() -> usize {
    usize::try_from(page_size()).unwrap()
}

fn regions() -> [(GuestAddress, usize); 2] {
    [(GuestAddress(0), 6 * page()), (GuestAddress(HIGH), 4 * page())]
}

/// Ten pages whose bytes are their numbers, from 1 on.
fn memory_file() -> File {
    let mut file = memfd(c"memory", b"").unwrap();
    for number in 1..=10 {
        file.write_all(&vec![number; page()]).unwrap();
    }
    file
}

/// Runs `guest` with memory that the example serves, and waits until both have ended.
fn with_handler(guest: impl FnOnce(&GuestMemory, &FaultHandler)) {
    let socket = Temporary::missing();
    let listener = UnixListener::bind(socket.path()).unwrap();
    let file = memory_file();
    let serving = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        if let Err(error) = handler::serve(&stream, &file) {
            // The guest would wait for ever.
            eprintln!("the handler failed: {error}");
            std::process::abort();
        }
    });
    let (memory, handler) = map_uffd(&regions(), socket.path()).unwrap();
    guest(&memory, &handler);
    drop(handler);
    serving.join().unwrap();
}

#[test]
fn the_handler_gives_pages_when_they_are_touched() {
    with_handler(|memory, _| {
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!(byte(5), 1);
        assert_eq!(byte(5 * page_size()), 6);
        assert_eq!(byte(HIGH), 7);
        assert_eq!(byte(HIGH + 4 * page_size() - 1), 10);
        memory.write_obj(77_u8, GuestAddress(page_size())).unwrap();
        assert_eq!((byte(page_size()), byte(page_size() + 1)), (77, 2));
    });
}

#[test]
fn pages_that_were_given_back_are_zeros() {
    with_handler(|memory, _| {
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!(byte(0), 1);
        let region = memory.iter().next().unwrap();
        // SAFETY: the first two pages of a live private mapping, into which Rust has no references.
        let done = unsafe { libc::madvise(region.as_ptr().cast(), 2 * page(), libc::MADV_DONTNEED) };
        assert_eq!(done, 0);
        assert_eq!((byte(0), byte(page_size()), byte(2 * page_size())), (0, 0, 3));
    });
}

#[test]
fn a_full_file_has_what_was_not_served_yet() {
    with_handler(|memory, _| {
        memory.write_obj(77_u8, GuestAddress(0)).unwrap();
        let path = Temporary::missing();
        let source = dump::DumpSource {
            memory,
            origin: dump::PageOrigin::Served,
            pagemap: None,
        };
        let target = dump::DumpTarget::new(&source, path.path()).unwrap();
        dump::dump_full(&source, target).unwrap().commit().unwrap();
        let mut expected = Vec::new();
        for number in 1..=10 {
            expected.extend(vec![number; page()]);
        }
        expected[0] = 77;
        assert!(fs::read(path.path()).unwrap() == expected);
    });
}

#[test]
fn one_message_says_where_memory_is() {
    let socket = Temporary::missing();
    let listener = UnixListener::bind(socket.path()).unwrap();
    let (memory, handler) = map_uffd(&regions(), socket.path()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = [0; 1024];
    let (length, descriptor) = stream.recv_with_fd(&mut bytes).unwrap();
    assert!(descriptor.is_some());
    let text = std::str::from_utf8(&bytes[..length]).unwrap();
    assert_eq!(text, describe(&memory));
    let hosts: Vec<_> = memory.iter().map(|region| region.as_ptr().addr()).collect();
    let page = page_size();
    let expected = format!(
        "[{{\"base_host_virt_addr\":{},\"size\":{},\"offset\":0,\"page_size\":{page},\"page_size_kib\":{page}}},\
         {{\"base_host_virt_addr\":{},\"size\":{},\"offset\":{},\"page_size\":{page},\"page_size_kib\":{page}}}]",
        hosts[0],
        6 * page,
        hosts[1],
        4 * page,
        6 * page
    );
    assert_eq!(text, expected);
    // Nothing follows, and the connection is open for as long as the guest lives.
    stream.set_nonblocking(true).unwrap();
    let open = stream.read(&mut bytes).unwrap_err();
    assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
    let _ = handler.as_fd();
    drop(handler);
    assert_eq!(stream.read(&mut bytes).unwrap(), 0);
}

#[test]
fn a_handler_that_has_gone_is_noticed() {
    let socket = Temporary::missing();
    let listener = UnixListener::bind(socket.path()).unwrap();
    let (_, handler) = map_uffd(&regions(), socket.path()).unwrap();
    let (stream, _) = listener.accept().unwrap();
    assert!(!handler.is_disconnected());
    drop(stream);
    assert!(handler.is_disconnected());
}

#[test]
fn who_waits_for_a_page_is_let_go() {
    let socket = Temporary::missing();
    let _listener = UnixListener::bind(socket.path()).unwrap();
    let (memory, handler) = map_uffd(&regions(), socket.path()).unwrap();
    let touched = memory.clone();
    let (sender, byte) = mpsc::channel();
    thread::spawn(move || {
        for address in [0, HIGH] {
            let byte: u8 = touched.read_obj(GuestAddress(address)).unwrap();
            sender.send(byte).unwrap();
        }
    });
    let mut polled = libc::pollfd {
        fd: handler.faults.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: there is one entry.
    let ready = unsafe { libc::poll(&raw mut polled, 1, LIMIT.as_millis().try_into().unwrap()) };
    assert_eq!(
        (ready, polled.revents),
        (1, libc::POLLIN),
        "no page is waited for"
    );
    handler.release();
    let bytes = [(); 2].map(|()| byte.recv_timeout(LIMIT));
    assert_eq!(bytes, [Ok(0), Ok(0)]);
}

#[test]
fn a_handler_that_is_not_there_is_named() {
    let socket = Temporary::missing();
    let error = map_uffd(&regions(), socket.path()).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }));
    assert!(
        error.to_string().contains(socket.path().to_str().unwrap()),
        "{error}"
    );
}
