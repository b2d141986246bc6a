//! Actions, and the state of the VM.

use serde::Deserialize;

use super::macros::{choice, schema};

choice! {
    /// Kind of an action.
    ActionType {
        /// Write the metrics.
        FlushMetrics,
        /// Start the guest.
        InstanceStart,
        /// Press Ctrl-Alt-Del on the guest's keyboard, which shuts Linux down.
        SendCtrlAltDel,
    }
}

schema! {
    /// Action.
    #[derive(Deserialize)]
    body Action {
        /// Start the guest, write the metrics, or press Ctrl-Alt-Del on the guest's keyboard.
        action_type: ActionType;
    }
    example "{action_type: 'FlushMetrics'}";
}

choice! {
    /// State of a VM after the start.
    VmState {
        /// The guest does not run.
        Paused,
        /// The guest runs.
        Resumed,
    }
}

schema! {
    /// Change of the state.
    #[derive(Deserialize)]
    body VmUpdate {
        /// New state.
        state: VmState;
    }
    example "{state: 'Paused'}";
}
