//! `mayfly demo`: boots the embedded guest and explains its output.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm::arch::{Native, Platform};
use vmm::boot::Image;
use vmm::config::VmConfig;
use vmm::memory;
use vmm::timeline::{Lane, Timeline};

use crate::cli::hints::OptionSet;
use crate::filters::{self, FileRules, Isolation};
use crate::logging::{print, print_message};
use crate::session::{self, Error};

const GUEST: &[u8] = include_bytes!(env!("MAYFLY_DEMO_GUEST"));

const INTRODUCTION: &str = "\
this boots the guest embedded in mayfly, which needs no files. The VM is this one process.
The guest prints on its serial port, and mayfly writes that output to stdout. Messages of mayfly go to stderr.";

/// Boots the embedded guest and returns the exit status. `exec` is the processor time of the process before `started_at`.
///
/// # Errors
/// As [`session::start_and_wait`].
pub fn demo(started_at: Instant, exec: Duration) -> Result<u8, Error> {
    let before = started_at.elapsed() + exec;
    print_message(INTRODUCTION);
    filters::set_up(&Isolation::default(), FileRules::default()).map_err(Error::Filters)?;
    let timeline = Arc::new(Timeline::new(Instant::now(), true));
    let file = memory::memfd(c"mayfly demo guest", GUEST).map_err(|source| Error::System {
        operation: "create a memory file for the guest",
        source,
    })?;
    let image = Image::from_file(Path::new("(the guest inside mayfly)"), file, Native::ARCHITECTURE)
        .map_err(Error::Image)?;
    let mut config = VmConfig::new("demo".into());
    config.cmdline = "demo -- hello from the command line".into();
    let ended = session::start_and_wait(session::new_control(&timeline), None, None, |control| {
        control.configure(config, image, None)?;
        control.start()?;
        Ok(())
    })?;
    print_measurements(&timeline, before);
    Ok(session::exit_status(&ended.reason, OptionSet::None))
}

/// Prints the measured times with their meaning. `before` is the time of the process before the first measurement.
fn print_measurements(timeline: &Timeline, before: Duration) {
    let spans = timeline.spans();
    let at = |name: &str| spans.iter().find(|span| span.name == name).map(|span| span.start);
    let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
    if let (Some(entered), Some(output)) = (at("enter guest"), at("first output")) {
        print_message(&format!(
            "the guest ran {:.2} ms after mayfly began to build its VM, and printed its first byte at {:.2} ms.\n\
             The process itself took {:.2} ms to start before that. The times are those of this run; the load of the host changes\n\
             them. At its end the guest reset its machine, which ends the VM and mayfly.",
            millis(entered),
            millis(output),
            millis(before),
        ));
    }
    print_message("phases of the main thread, in microseconds (vCPU threads run beside it):");
    for span in spans
        .iter()
        .filter(|span| !span.length.is_zero() && span.lane == Lane::Main)
    {
        let length = span.length.as_secs_f64() * 1e6;
        print(&format!("  {length:>8.1}  {}\n", span.name));
    }
    print_message("next: mayfly run KERNEL, mayfly inspect KERNEL, mayfly help run");
}
