//! A need of mayfly, and its state.

/// State of a need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Complete.
    Ok,
    /// Partial.
    Limited,
    /// Absent.
    Missing,
}

impl State {
    /// Returns the name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }
}

/// A need of mayfly, as this host meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name in reports.
    pub name: &'static str,
    /// State.
    pub state: State,
    /// Description of the host, or the cause of the state.
    pub detail: String,
    /// Effect on mayfly, and way out.
    pub remedy: Option<String>,
}

impl Check {
    /// Returns a need that this host meets.
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    /// Returns a need that this host meets in part.
    pub fn limited(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Limited,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// Returns a need that this host does not meet.
    pub fn missing(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            ..Self::limited(name, detail, remedy)
        }
    }
}
