//! gdb on stdin and stdout: `target remote | mayfly ctl gdb`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use api::client::{self, ClientResponse};
use serde_json::json;
use vmm::ErrorChain;
use vmm::debugger::{self, DebugAbilities};

use super::request::{Error, rejection};

/// Bytes of one read.
const CHUNK_SIZE: usize = 4096;

/// Protocol of the connection.
const PROTOCOL: &str = "gdb";

const PATH: &str = "/vm/debugger";

/// Connects gdb with the VM behind `socket`, until either ends.
///
/// # Errors
/// [`Error`] if the VM cannot be reached, or rejects the debugger.
pub fn connect(socket: &Path, timeout: Duration) -> Result<Vec<u8>, Error> {
    // The VMM has no right to create a VM for the probe. Without KVM here, the debugger has the means of nearly each KVM.
    let abilities = debugger::probe().unwrap_or_else(|error| {
        eprintln!(
            "mayfly: warning: cannot probe the means of debugging, and assumes breakpoints in debug registers: {}",
            ErrorChain(&error)
        );
        DebugAbilities {
            has_hardware_breakpoints: true,
            ..DebugAbilities::default()
        }
    });
    let vm = attach(socket, timeout, abilities)?;
    let from_vm = vm.try_clone().map_err(failed("connect"))?;
    // gdb closes its pipe at its end.
    thread::spawn(move || {
        let _ = copy(&mut io::stdin(), &mut &vm);
        let _ = vm.shutdown(Shutdown::Both);
    });
    copy(&mut &from_vm, &mut io::stdout()).map_err(failed("copy a packet"))?;
    Ok(Vec::new())
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Gdb { operation, source }
}

/// Requests that the VM attaches a debugger on a new connection. Returns the connection.
fn attach(socket: &Path, timeout: Duration, abilities: DebugAbilities) -> Result<UnixStream, Error> {
    let body = json!({
        "hardware_breakpoints": abilities.has_hardware_breakpoints,
        "watchpoints": abilities.has_watchpoints,
        "breakpoint_instructions": abilities.has_software_breakpoints,
    });
    let (response, stream) = client::switch(socket, timeout, PROTOCOL, PATH, body.to_string().as_bytes())
        .map_err(Error::Client)?;
    match response {
        ClientResponse { status: 101, .. } => Ok(stream),
        response => {
            let request = format!("PUT {PATH}");
            Err(match rejection(&response) {
                Some(reason) => Error::Rejected { request, reason },
                None => Error::Status {
                    request,
                    status: response.status,
                },
            })
        }
    }
}

/// Copies each packet at once, until the end of `from`.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK_SIZE];
    loop {
        let count = match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The VM has ended before it has read the last acknowledgement of gdb.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            result => result?,
        };
        to.write_all(&bytes[..count])?;
        to.flush()?;
    }
}
