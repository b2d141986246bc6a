//! Commands of the user in gdb, after `monitor`.

use std::fmt::{self, Write};
use std::sync::Arc;

use super::context::{Context, SnapshotRequest};
use crate::channel::channel;
use crate::machine::Machine;
use crate::vcpu::KINDS;

const HELP: &str = "\
exits          show how often each vCPU has left the guest, by reason
devices        show the virtio devices and the state of their drivers
snapshot DIR   create a snapshot of the VM in DIR, without the breakpoints
";

/// Executes `command`.
pub(super) fn execute(context: &Context, machine: &Machine, command: &str, output: &mut dyn Write) {
    let (name, argument) = command.split_once(' ').unwrap_or((command, ""));
    // The connection takes all text.
    let _ = match (name, argument.trim()) {
        ("exits", "") => write_exits(machine, output),
        ("devices", "") => write_devices(machine, output),
        ("snapshot", directory) if !directory.is_empty() => match request_snapshot(context, directory) {
            Ok(()) => writeln!(output, "snapshot created in {directory}"),
            Err(error) => writeln!(output, "{error}"),
        },
        ("help" | "", "") => output.write_str(HELP),
        _ => writeln!(
            output,
            "cannot execute the command {command:?}: it is unknown; use one of\n{HELP}"
        ),
    };
}

fn write_exits(machine: &Machine, output: &mut dyn Write) -> fmt::Result {
    for (id, exits) in machine.exits().enumerate() {
        write!(output, "vCPU {id}:")?;
        for (kind, count) in KINDS.iter().zip(exits.counts()) {
            write!(output, " {kind} {count}")?;
        }
        writeln!(output)?;
    }
    let (io, memory) = machine.unclaimed();
    writeln!(output, "unclaimed: {io} to ports, {memory} to addresses")
}

fn write_devices(machine: &Machine, output: &mut dyn Write) -> fmt::Result {
    for device in machine.devices() {
        let info = device.info();
        let state = device.driver_state();
        writeln!(
            output,
            "{} {}: address {:#x}, IRQ {}, {state:?}",
            device.kind(),
            device.id(),
            info.base,
            info.gsi
        )?;
    }
    Ok(())
}

/// Requests a snapshot from the main thread, and waits for it.
fn request_snapshot(context: &Context, directory: &str) -> Result<(), String> {
    let ended = "cannot create the snapshot: the VM ends";
    let (result, receiver) = channel();
    let request = SnapshotRequest {
        directory: directory.into(),
        result: Arc::new(result),
    };
    context.snapshots.send(request).map_err(|_| ended)?;
    // Fails only if the counter is at its maximum, and then the eventfd is readable.
    let _ = context.snapshot_event.write(1);
    receiver.receive().unwrap_or_else(|| Err(ended.into()))
}
