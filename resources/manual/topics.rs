//! The help texts.

#[path = "../../jailer/src/help.rs"]
mod jailer;
#[path = "../../src/cli/help.rs"]
mod mayfly;
#[path = "../../src/standby/help.rs"]
mod standby;
#[path = "../../src/tools/help.rs"]
mod tools;

use crate::parse::{Help, parse};

/// Column of the descriptions in the help texts of mayfly.
const COLUMN: usize = 24;
/// The same of mayfly-jailer, from Firecracker.
const JAILER_COLUMN: usize = 26;

/// A help text, and its place.
pub struct Topic {
    /// Name of the man page.
    pub page: &'static str,
    /// Program.
    pub program: &'static str,
    /// Commands of the program with this text. Empty for the program itself.
    pub commands: &'static [&'static str],
    /// The text.
    #[cfg(test)]
    pub text: &'static str,
    /// Its structure.
    pub help: Help,
}

/// Returns all help texts, first that of mayfly.
pub fn topics() -> Vec<Topic> {
    let topic = |page, commands, text| Topic {
        page,
        program: "mayfly",
        commands,
        #[cfg(test)]
        text,
        help: parse(text, COLUMN),
    };
    let of = |page, commands, topic_of: mayfly::Topic| topic(page, commands, topic_of.text());
    vec![
        of("mayfly", &[], mayfly::Topic::Mayfly),
        of("mayfly-run", &["run"], mayfly::Topic::Run),
        of("mayfly-restore", &["restore"], mayfly::Topic::Restore),
        of("mayfly-shell", &["shell"], mayfly::Topic::Shell),
        of(
            "mayfly-snapshot",
            &["snapshot", "snapshot-info", "snapshot-merge"],
            mayfly::Topic::Snapshot,
        ),
        of("mayfly-inspect", &["inspect"], mayfly::Topic::Inspect),
        of("mayfly-demo", &["demo"], mayfly::Topic::Demo),
        of("mayfly-version", &["version"], mayfly::Topic::Version),
        of("mayfly-firecracker", &["firecracker"], mayfly::Topic::Firecracker),
        topic("mayfly-core", &["core"], tools::CORE),
        topic("mayfly-ctl", &["ctl"], tools::CTL),
        topic("mayfly-doctor", &["doctor"], tools::DOCTOR),
        topic("mayfly-standby", &["standby"], standby::TEXT),
        Topic {
            program: "mayfly-tools",
            ..topic("mayfly-tools", &[], tools::TOOLS)
        },
        Topic {
            page: "mayfly-jailer",
            program: "mayfly-jailer",
            commands: &[],
            #[cfg(test)]
            text: jailer::TEXT,
            help: parse(jailer::TEXT, JAILER_COLUMN),
        },
    ]
}
