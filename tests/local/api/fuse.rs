//! A disk that is slow for certain: a FUSE file system with one file, whose server holds back each read, write, fsync and discard until
//! the test releases them, and on request also what finds and opens the file. As a good server does, it fails an interrupted request at
//! once, so that a process on it can end.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::served::Directory;
use crate::guest::TIMEOUT;

/// Name of the file.
const NAME: &[u8] = b"disk\0";
/// Bytes of the file.
const SIZE: usize = 64 << 10;
/// Inode of the root directory.
const ROOT: u64 = 1;
/// Inode of the file.
const FILE: u64 = 2;
/// Interval of checks for the end of the server.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Seconds for which the kernel caches names and attributes.
const VALID: u64 = 3600;

/// Bytes of `fuse_in_header` of linux/fuse.h.
const IN_HEADER: usize = 40;
/// Maximum bytes of the data of one write.
const MAX_WRITE: u32 = 32 << 10;

/// Operations of linux/fuse.h.
mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
}

/// A request of the kernel.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes[offset..offset + 8].try_into().unwrap())
    }

    fn opcode(&self) -> u32 {
        self.u32_at(4)
    }

    fn unique(&self) -> u64 {
        self.u64_at(8)
    }

    fn node(&self) -> u64 {
        self.u64_at(16)
    }

    fn body(&self) -> &[u8] {
        &self.bytes[IN_HEADER..]
    }

    /// Returns the bytes of the file of `size` bytes that the read or write covers.
    fn range(&self, size: usize) -> std::ops::Range<usize> {
        let offset = usize::try_from(self.u64_at(IN_HEADER + 8)).unwrap().min(size);
        let length = usize::try_from(self.u32_at(IN_HEADER + 16)).unwrap();
        offset..(offset + length).min(size)
    }
}

/// Response to a request.
enum Reply {
    Data(Vec<u8>),
    Error(i32),
    /// The kernel expects none.
    None,
}

#[derive(Default)]
struct State {
    /// Requests that wait for the release.
    held: Vec<Request>,
    is_released: bool,
    /// Requests that find or open the file wait too.
    holds_names: bool,
    is_stopping: bool,
    content: Vec<u8>,
}

/// The mounted file system. Drop unmounts it, and fails all requests.
pub struct SlowDisk {
    directory: Directory,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

struct Shared {
    device: File,
    state: Mutex<State>,
    changed: Condvar,
}

impl SlowDisk {
    /// Mounts the file system in a mount namespace of this thread and of the processes that it starts later.
    pub fn mount() -> Self {
        Self::mount_with((0..=255).cycle().take(SIZE).collect())
    }

    /// As [`mount`](Self::mount), with `content` in the file.
    pub fn mount_with(content: Vec<u8>) -> Self {
        let directory = Directory::new();
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/fuse")
            .unwrap();
        // SAFETY: the call takes no pointer.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "");
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        mount("slow", &directory.text(""), "fuse", 0, &options);
        let shared = Arc::new(Shared {
            device,
            state: Mutex::new(State {
                content,
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        let server = std::thread::spawn({
            let shared = shared.clone();
            move || shared.serve()
        });
        Self {
            directory,
            shared,
            server: Some(server),
        }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> String {
        self.directory.text("disk")
    }

    /// Returns the directory, which has only the file.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Holds back also the requests that find or open the file. The kernel must not have looked for it before.
    pub fn hold_names(&self) {
        self.shared.state.lock().unwrap().holds_names = true;
    }

    /// Waits until the kernel waits for a request that is held back.
    pub fn expect_held(&self) {
        let state = self.shared.state.lock().unwrap();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, TIMEOUT, |state| state.held.is_empty());
        // Not with the lock, which the panic would poison for the drop.
        let is_late = waited.unwrap().1.timed_out();
        assert!(!is_late, "no request reaches the disk");
    }

    /// Executes all requests, those that follow at once.
    pub fn release(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.is_released = true;
        for request in std::mem::take(&mut state.held) {
            let reply = state.execute(&request);
            self.shared.send(request.unique(), reply);
        }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().is_stopping = true;
        let path = CString::new(self.directory.text("")).unwrap();
        // SAFETY: the path outlives the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        if let Some(server) = self.server.take().filter(|_| !std::thread::panicking()) {
            scratch::join(server);
        }
    }
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, options: &str) {
    let [source, target, kind, options] =
        [source, target, kind, options].map(|text| CString::new(text).unwrap());
    // SAFETY: the strings outlive the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    let error = io::Error::last_os_error();
    assert_eq!(result, 0, "cannot mount {target:?}: {error}");
}

impl Shared {
    fn serve(&self) {
        let mut buffer = vec![0; usize::try_from(MAX_WRITE).unwrap() + 4096];
        while !self.state.lock().unwrap().is_stopping {
            match (&self.device).read(&mut buffer) {
                Ok(length) => self.receive(Request {
                    bytes: buffer[..length].to_vec(),
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(),
                // An interrupted request has vanished.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                // Unmounted.
                Err(_) => break,
            }
        }
    }

    fn wait(&self) {
        let mut poll = libc::pollfd {
            fd: self.device.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout = i32::try_from(POLL_INTERVAL.as_millis()).unwrap();
        // SAFETY: the call accesses one `pollfd`, which outlives it.
        unsafe { libc::poll(&raw mut poll, 1, timeout) };
    }

    fn receive(&self, request: Request) {
        let mut state = self.state.lock().unwrap();
        match request.opcode() {
            opcode::INTERRUPT => {
                let unique = request.u64_at(IN_HEADER);
                if let Some(index) = state.held.iter().position(|held| held.unique() == unique) {
                    state.held.remove(index);
                    self.send(unique, Reply::Error(libc::EINTR));
                }
            }
            opcode::READ | opcode::WRITE | opcode::FSYNC | opcode::FALLOCATE if !state.is_released => {
                state.held.push(request);
                self.changed.notify_all();
            }
            opcode::LOOKUP | opcode::OPEN | opcode::STATFS if state.holds_names && !state.is_released => {
                state.held.push(request);
                self.changed.notify_all();
            }
            _ => self.send(request.unique(), state.execute(&request)),
        }
    }

    fn send(&self, unique: u64, reply: Reply) {
        let (error, data) = match reply {
            Reply::Data(data) => (0, data),
            Reply::Error(error) => (-error, Vec::new()),
            Reply::None => return,
        };
        let length = u32::try_from(16 + data.len()).unwrap();
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(error.to_le_bytes());
        bytes.extend(unique.to_le_bytes());
        bytes.extend(data);
        // Fails if the request or the file system has vanished.
        let _ = (&self.device).write(&bytes);
    }
}

impl State {
    fn execute(&mut self, request: &Request) -> Reply {
        match request.opcode() {
            opcode::INIT => Reply::Data(init()),
            opcode::LOOKUP if request.body() == NAME => {
                let mut entry = words(&[FILE, 0, VALID, VALID, 0]);
                entry.extend(attributes(FILE, self.content.len()));
                Reply::Data(entry)
            }
            opcode::LOOKUP => Reply::Error(libc::ENOENT),
            opcode::GETATTR => {
                let mut data = words(&[VALID, 0]);
                data.extend(attributes(request.node(), self.content.len()));
                Reply::Data(data)
            }
            opcode::OPEN => Reply::Data(words(&[0, 0])),
            opcode::READ => Reply::Data(self.content[request.range(self.content.len())].to_vec()),
            opcode::WRITE => {
                let range = request.range(usize::MAX);
                let data = &request.body()[40..40 + range.len()];
                let size = self.content.len().max(range.end);
                self.content.resize(size, 0);
                self.content[range.clone()].copy_from_slice(data);
                Reply::Data(words(&[range.len() as u64]))
            }
            // A discard without effect is valid.
            opcode::FSYNC | opcode::FALLOCATE | opcode::RELEASE => Reply::Data(Vec::new()),
            opcode::FORGET | opcode::BATCH_FORGET => Reply::None,
            _ => Reply::Error(libc::ENOSYS),
        }
    }
}

/// Returns `values` in the byte order of the host, which the protocol uses. All test hosts are little-endian.
fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Returns `fuse_init_out` of linux/fuse.h, version 7.31.
fn init() -> Vec<u8> {
    let mut data: Vec<u8> = [7, 31, 0, 0, 0, MAX_WRITE, 1]
        .iter()
        .flat_map(|value: &u32| value.to_le_bytes())
        .collect();
    data.resize(64, 0);
    data
}

/// Returns `fuse_attr` of linux/fuse.h for the inode `node`, whose file has `size` bytes.
fn attributes(node: u64, size: usize) -> Vec<u8> {
    let (mode, size) = match node {
        ROOT => (libc::S_IFDIR | 0o755, 0),
        _ => (libc::S_IFREG | 0o600, size as u64),
    };
    let mut data = words(&[node, size, size / 512, 0, 0, 0]);
    // Nanoseconds of three times, mode, links, user, group, device, block size, flags.
    for value in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        data.extend(value.to_le_bytes());
    }
    data
}
