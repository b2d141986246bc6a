//! An example of a page fault handler: gives guests their memory out of a snapshot's memory file.
//!
//! `cargo run -p vmm --example uffd-handler -- SOCKET MEMORY_FILE`, then load the snapshot with the backend
//! `{"backend_type": "Uffd", "backend_path": "SOCKET"}`. One handler serves any number of guests.

use std::env;
use std::error::Error;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::thread;

mod handler;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [socket, memory] = &arguments[..] else {
        return Err("usage: uffd-handler SOCKET MEMORY_FILE".into());
    };
    let memory = File::open(memory)?;
    for guest in UnixListener::bind(socket)?.incoming() {
        let (guest, memory) = (guest?, memory.try_clone()?);
        thread::spawn(move || {
            if let Err(error) = handler::serve(&guest, &memory) {
                eprintln!("a guest is not served any more: {error}");
            }
        });
    }
    Ok(())
}
