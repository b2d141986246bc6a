//! `mayfly demo`: boots the guest inside mayfly and explains what is seen.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm::arch::{Native, Platform};
use vmm::boot::Image;
use vmm::config::VmConfig;
use vmm::memory;
use vmm::timeline::{Lane, Timeline};

use crate::logging::{print, print_message};
use crate::run::{self, Error};

const GUEST: &[u8] = include_bytes!(env!("MAYFLY_DEMO_GUEST"));

const BEFORE: &str = "\
this boots a guest of its own: a real virtual machine, one process, no files.
Lines without \"mayfly:\" are the guest's, printed by it to its serial port; these, on stderr, are mayfly's.";

/// Boots the embedded guest. `exec` is the processor time that was used before `origin`.
///
/// # Errors
/// As [`run::start_and_wait`].
pub fn demo(origin: Instant, exec: Duration) -> Result<u8, Error> {
    print_message(BEFORE);
    let timeline = Arc::new(Timeline::new(Instant::now(), true));
    let before = origin.elapsed();
    let file = memory::memfd(c"mayfly demo guest", GUEST).map_err(|source| Error::System {
        operation: "make a file in memory for the guest",
        source,
    })?;
    let image = Image::from_file(Path::new("(the guest inside mayfly)"), file, Native::ARCHITECTURE)
        .map_err(Error::Image)?;
    let mut config = VmConfig::new("demo".into());
    config.cmdline = "demo -- hello from the command line".into();
    let (end, _) = run::start_and_wait(&timeline, None, |control| {
        control.configure(config, image, None)?;
        control.start()?;
        Ok(())
    })?;
    explain(&timeline, before + exec);
    Ok(run::exit_status(&end))
}

fn explain(timeline: &Timeline, before: Duration) {
    let spans = timeline.spans();
    let at = |name: &str| spans.iter().find(|span| span.name == name).map(|span| span.start);
    let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
    if let (Some(entered), Some(output)) = (at("enter guest"), at("first output")) {
        print_message(&format!(
            "the guest was entered {:.2} ms after mayfly began to make its machine, and printed its first byte at {:.2} ms;\n\
             starting the program had taken {:.2} ms of processor time before that. Then the guest reset itself, which ends a\n\
             machine, and mayfly with it.",
            millis(entered),
            millis(output),
            millis(before),
        ));
    }
    print_message("what took how long, in microseconds:");
    for span in spans
        .iter()
        .filter(|span| !span.length.is_zero() && span.lane == Lane::Main)
    {
        print(&format!(
            "  {:>8.1}  {}
",
            span.length.as_secs_f64() * 1e6,
            span.name
        ));
    }
    print_message("next: mayfly run KERNEL, mayfly inspect KERNEL, mayfly help run");
}
