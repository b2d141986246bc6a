//! Fault handler of one guest.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use serde::Deserialize;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

// Requests and events of linux/userfaultfd.h.
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03_u32 as libc::Ioctl;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_EVENT_REMOVE: u8 = 0x15;

/// Maximum length of the VMM's message in bytes.
const MAX_MESSAGE: usize = 64 << 10;

/// Region of guest memory: address in the VMM process, offset in the memory file, sizes in bytes.
#[derive(Clone, Debug, Deserialize)]
pub struct Region {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

/// Receives the VMM's message from `guest` and serves page faults from `memory` until the VMM closes the connection.
/// Returns the number of pages served.
///
/// # Errors
/// Fails if the message is invalid, the file is shorter than guest memory, or a system call fails.
pub fn serve(guest: &UnixStream, memory: &File) -> io::Result<u64> {
    serve_after(guest, memory, || ())
}

/// As [`serve`], but calls `before_event` before each event of the kernel, mostly a page fault.
///
/// # Errors
/// As [`serve`].
pub fn serve_after(guest: &UnixStream, memory: &File, before_event: impl Fn()) -> io::Result<u64> {
    let mut message = vec![0; MAX_MESSAGE];
    let (length, descriptor) = guest.recv_with_fd(&mut message)?;
    let missing = || io::Error::other("the message has no file descriptor");
    let mut pages = Pages {
        faults: descriptor.ok_or_else(missing)?,
        memory,
        regions: serde_json::from_slice(&message[..length])?,
        removed: BTreeSet::new(),
        filled: 0,
    };
    while wait(guest, &pages.faults)? {
        before_event();
        pages.process_event()?;
    }
    Ok(pages.filled)
}

/// Waits for the next event. Returns false if the VMM has closed the connection.
fn wait(guest: &UnixStream, faults: &File) -> io::Result<bool> {
    let mut polled = [guest.as_raw_fd(), faults.as_raw_fd()].map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: `polled` has two valid entries.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted {
            Ok(true)
        } else {
            Err(error)
        };
    }
    // The VMM sends no second message: any event on the connection is its end.
    Ok(polled[0].revents == 0)
}

struct Pages<'a> {
    faults: File,
    memory: &'a File,
    regions: Vec<Region>,
    /// Addresses of removed pages (MADV_DONTNEED): the next access must read zeros.
    removed: BTreeSet<u64>,
    filled: u64,
}

impl Pages<'_> {
    fn process_event(&mut self) -> io::Result<()> {
        // `struct uffd_msg`: the event number in byte 0, its arguments from byte 8 on.
        let mut event = [0; 32];
        match self.faults.read(&mut event) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            read => read?,
        };
        let argument = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&event[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        match event[0] {
            UFFD_EVENT_PAGEFAULT => self.fill(argument(16)),
            UFFD_EVENT_REMOVE => {
                let page = self.region(argument(8))?.page_size;
                let step = usize::try_from(page).map_err(io::Error::other)?;
                self.removed.extend((argument(8)..argument(16)).step_by(step));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn region(&self, address: u64) -> io::Result<Region> {
        let within =
            |region: &&Region| (0..region.size).contains(&address.wrapping_sub(region.base_host_virt_addr));
        let region = self.regions.iter().find(within).cloned();
        region.ok_or_else(|| io::Error::other(format!("{address:#x} is not in guest memory")))
    }

    /// Fills the page at `address` and wakes the waiting threads.
    fn fill(&mut self, address: u64) -> io::Result<()> {
        let region = self.region(address)?;
        let length = usize::try_from(region.page_size).map_err(io::Error::other)?;
        let start = address - address % region.page_size;
        let mut page = vec![0; length];
        let removed = self.removed.contains(&start);
        if !removed {
            let offset = region.offset + (start - region.base_host_virt_addr);
            self.memory.read_exact_at(&mut page, offset)?;
        }
        let mut copy = Copy {
            dst: start,
            src: page.as_ptr().expose_provenance() as u64,
            len: region.page_size,
            mode: 0,
            copy: 0,
        };
        // SAFETY: `copy` is the structure of this request, and `src` points to `len` bytes; `dst` is in another process.
        let result = unsafe { libc::ioctl(self.faults.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
        if result == 0 {
            self.removed.remove(&start);
            self.filled += 1;
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // EEXIST: two vCPUs touched the page. EAGAIN: a pending event must be read first; the woken thread faults again.
            Some(libc::EEXIST | libc::EAGAIN) => self.wake(start, region.page_size),
            // The VMM has exited; wait() reports it next.
            Some(libc::ESRCH | libc::ENOENT) => Ok(()),
            _ => Err(error),
        }
    }

    fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        let mut range = Range { start, len };
        // SAFETY: `range` is the structure of this request.
        let result = unsafe { libc::ioctl(self.faults.as_raw_fd(), UFFDIO_WAKE, &raw mut range) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
