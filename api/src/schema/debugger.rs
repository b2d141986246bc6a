//! Debugger of a VM.

use serde::Deserialize;
use vmm::control::DebugAbilities;

use super::macros::schema;

schema! {
    /// Debugger that attaches on the connection of the request, with the means of debugging that work on this host.
    #[derive(Deserialize)]
    body Debugger {
        /// Breakpoints in debug registers stop a vCPU. Absent: false.
        hardware_breakpoints: Option<bool>;
        /// Watchpoints of the processor stop a vCPU. Absent: false.
        watchpoints: Option<bool>;
        /// A breakpoint instruction stops the vCPU, and not the guest. Absent: false.
        breakpoint_instructions: Option<bool>;
    }
    example "{hardware_breakpoints: true, watchpoints: true, breakpoint_instructions: true}";
}

impl From<Debugger> for DebugAbilities {
    fn from(debugger: Debugger) -> Self {
        Self {
            has_hardware_breakpoints: debugger.hardware_breakpoints.unwrap_or(false),
            has_watchpoints: debugger.watchpoints.unwrap_or(false),
            has_software_breakpoints: debugger.breakpoint_instructions.unwrap_or(false),
        }
    }
}
