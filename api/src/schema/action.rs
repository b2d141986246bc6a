//! What is done with a VM.

use serde::Deserialize;

use super::{Field, Schema};

/// Something to be done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ActionType {
    /// The guest is started.
    InstanceStart,
    /// A line of numbers is written.
    FlushMetrics,
    /// The guest gets these keys pressed, by which Linux shuts down.
    SendCtrlAltDel,
}

/// An action.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// How a VM is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum VmState {
    /// Its guest is kept from running.
    Paused,
    /// Its guest runs.
    Resumed,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VmUpdate {
    /// The state to come.
    pub state: VmState,
}

impl Schema for Action {
    const NAME: &'static str = "Action";
    const FIELDS: &'static [Field] = &[Field::choice(
        "action_type",
        &["InstanceStart", "FlushMetrics", "SendCtrlAltDel"],
    )];
}

impl Schema for VmUpdate {
    const NAME: &'static str = "VmUpdate";
    const FIELDS: &'static [Field] = &[Field::choice("state", &["Paused", "Resumed"])];
}
