//! Example of a fault handler: serves the page faults of guests from the memory file of a snapshot.
//!
//! Run `cargo run -p vmm --example uffd-handler -- SOCKET MEMORY_FILE`, then load the snapshot with the backend
//! `{"backend_type": "Uffd", "backend_path": "SOCKET"}`. One process serves any number of guests.

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
                eprintln!("cannot serve a guest any longer: {error}");
            }
        });
    }
    Ok(())
}
