use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{Error, FaultHandler, describe_regions, map_uffd};
use crate::GuestMemory;
use crate::boot::testing::Temporary;
use crate::cancellation::Cancellation;
use crate::memory::{dump, memfd, page_size};

/// Fault handler of resources/uffd-handler, under test here.
#[path = "../../../../resources/uffd-handler/handler.rs"]
mod handler;

/// Maximum wait for an event; a later one counts as never.
const TIMEOUT: Duration = Duration::from_secs(60);
const HIGH: u64 = 1 << 32;

fn page() -> usize {
    usize::try_from(page_size()).unwrap()
}

fn regions() -> [(GuestAddress, usize); 2] {
    [(GuestAddress(0), 6 * page()), (GuestAddress(HIGH), 4 * page())]
}

/// Creates a file of ten pages; each byte of a page is the page number, counted from 1.
fn memory_file() -> File {
    let mut file = memfd(c"memory", b"").unwrap();
    for number in 1..=10 {
        file.write_all(&vec![number; page()]).unwrap();
    }
    file
}

/// Runs `guest` with memory from the example fault handler, and waits for the end of both.
fn with_handler(guest: impl FnOnce(&GuestMemory, &FaultHandler)) {
    let socket = Temporary::missing();
    let listener = UnixListener::bind(socket.path()).unwrap();
    let file = memory_file();
    let serving = thread::spawn(move || {
        let stream = scratch::accept(&listener);
        if let Err(error) = handler::serve(&stream, &file) {
            // Without an abort `guest` would block without end.
            eprintln!("the fault handler failed: {error}");
            std::process::abort();
        }
    });
    let (memory, handler) = map_uffd(&regions(), socket.path()).unwrap();
    guest(&memory, &handler);
    drop(handler);
    scratch::join(serving);
}

#[test]
fn touched_pages_are_served() {
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
fn removed_pages_read_zero() {
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
fn full_dump_holds_unserved_pages() {
    with_handler(|memory, _| {
        memory.write_obj(77_u8, GuestAddress(0)).unwrap();
        let path = Temporary::missing();
        let source = dump::DumpSource {
            memory,
            origin: dump::PageOrigin::Served,
            pagemap: None,
            cancellation: &Cancellation::default(),
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
fn message_describes_regions() {
    let socket = Temporary::missing();
    let listener = UnixListener::bind(socket.path()).unwrap();
    let (memory, handler) = map_uffd(&regions(), socket.path()).unwrap();
    let mut stream = scratch::accept(&listener);
    stream.set_read_timeout(Some(scratch::TIMEOUT)).unwrap();
    let mut bytes = [0; 1024];
    let (length, descriptor) = stream.recv_with_fd(&mut bytes).unwrap();
    assert!(descriptor.is_some());
    let text = std::str::from_utf8(&bytes[..length]).unwrap();
    assert_eq!(text, describe_regions(&memory));
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
    // No further message follows, and the connection stays open while the handler object lives.
    stream.set_nonblocking(true).unwrap();
    let open = stream.read(&mut bytes).unwrap_err();
    assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
    let _ = handler.as_fd();
    drop(handler);
    // The read waits: a child that another test starts keeps the connection open until its `execve`.
    stream.set_nonblocking(false).unwrap();
    assert_eq!(stream.read(&mut bytes).unwrap(), 0);
}

#[test]
fn disconnected_handler_is_detected() {
    let socket = Temporary::missing();
    let listener = UnixListener::bind(socket.path()).unwrap();
    let (_, handler) = map_uffd(&regions(), socket.path()).unwrap();
    let stream = scratch::accept(&listener);
    assert!(!handler.is_disconnected());
    stream.shutdown(Shutdown::Both).unwrap();
    assert!(handler.is_disconnected());
}

#[test]
fn missing_handler_error_names_socket() {
    let socket = Temporary::missing();
    let error = map_uffd(&regions(), socket.path()).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }));
    assert!(
        error.to_string().contains(socket.path().to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn full_backlog_of_handler_times_out() {
    let socket = Temporary::missing();
    let listener = UnixListener::bind(socket.path()).unwrap();
    // SAFETY: the call takes no pointer; a listening socket may be asked to listen again.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    // With a backlog of 0, the kernel still queues one connection.
    let _first = UnixStream::connect(socket.path()).unwrap();
    let (sender, mapped) = mpsc::channel();
    let path = socket.path().to_owned();
    thread::spawn(move || sender.send(map_uffd(&regions(), &path).map(drop)));
    let error = mapped.recv_timeout(TIMEOUT).expect("connect blocks").unwrap_err();
    assert!(matches!(error, Error::Backlog { .. }), "{error}");
    assert!(
        error.to_string().contains("the backlog of the socket is full"),
        "{error}"
    );
}
