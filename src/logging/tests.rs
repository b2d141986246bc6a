use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use api::process::{LogControl, LoggerSettings};
use log::{Level, LevelFilter, Log, Record};
use scratch::{Directory, Reader};

use super::{ProcessLog, SharedLog};

/// A log of its own: that of the process belongs to all tests.
fn log() -> (ProcessLog, &'static SharedLog) {
    let shared = Box::leak(Box::new(SharedLog::new()));
    (ProcessLog::of("vm-1", shared), shared)
}

fn to(path: PathBuf) -> LoggerSettings {
    LoggerSettings {
        path: Some(path),
        ..LoggerSettings::default()
    }
}

/// Says `text` from the module `api::http`, and returns what stderr gets.
fn say(shared: &SharedLog, level: Level, text: &str) -> String {
    say_at(shared, level, text, Instant::now())
}

fn say_at(shared: &SharedLog, level: Level, text: &str, now: Instant) -> String {
    say_from(shared, "api::http", level, text, now)
}

fn say_from(shared: &SharedLog, module: &str, level: Level, text: &str, now: Instant) -> String {
    let mut got = String::new();
    let mut record = Record::builder();
    record.level(level).target(module).module_path(Some(module));
    record.file(Some("src/x.rs")).line(Some(7));
    let mut take = |record: &Record<'_>| shared.take(record, now, |text| got.push_str(text));
    take(&record.args(format_args!("{text}")).build());
    got
}

/// The lines of the file without their times.
fn lines(bytes: Vec<u8>) -> Vec<String> {
    let text = String::from_utf8(bytes).unwrap();
    text.lines()
        .map(|line| {
            let (time, rest) = line.split_once(' ').unwrap();
            assert_eq!((time.len(), &time[10..11]), (29, "T"), "{line}");
            rest.to_owned()
        })
        .collect()
}

/// The name of this test's thread.
fn me() -> String {
    thread::current().name().unwrap().to_owned()
}

#[test]
fn warnings_go_to_stderr_by_default() {
    let (_, shared) = log();
    assert_eq!(say(shared, Level::Warn, "a\nb"), "mayfly: warn: a\\nb\n");
    assert_eq!(say(shared, Level::Info, "x"), "");
    let metadata = |level| log::Metadata::builder().level(level).build();
    assert!(shared.enabled(&metadata(Level::Warn)) && !shared.enabled(&metadata(Level::Info)));
}

#[test]
fn the_level_is_the_clients() {
    let (mut log, shared) = log();
    for (filter, said) in [
        (LevelFilter::Off, 0),
        (LevelFilter::Error, 1),
        (LevelFilter::Info, 3),
        (LevelFilter::Trace, 5),
    ] {
        let settings = LoggerSettings {
            level: Some(filter),
            ..LoggerSettings::default()
        };
        log.configure(&settings).unwrap();
        // Later by more than a period each, so that the budget is no matter.
        let now = Instant::now() + Duration::from_secs(10);
        let levels = Level::iter().filter(|level| !say_at(shared, *level, "x", now).is_empty());
        assert_eq!(levels.count(), said, "{filter}");
    }
}

#[test]
fn what_is_not_named_stays() {
    let folder = Directory::new();
    let (mut log, shared) = log();
    log.configure(&LoggerSettings {
        path: Some(folder.path("log")),
        level: Some(LevelFilter::Info),
        show_level: Some(true),
        show_origin: Some(true),
        module: Some("api".into()),
    })
    .unwrap();
    log.configure(&LoggerSettings::default()).unwrap();
    let now = Instant::now();
    assert_eq!(say_from(shared, "api", Level::Info, "x", now), "");
    assert_eq!(say_from(shared, "vmm", Level::Info, "y", now), "");
    let got = lines(fs::read(folder.path("log")).unwrap());
    assert_eq!(got, [format!("[vm-1:{}:INFO:src/x.rs:7] x", me())]);
}

#[test]
fn a_file_gets_what_stderr_had() {
    let folder = Directory::new();
    let path = folder.path("log");
    let (mut log, shared) = log();
    log.configure(&to(path.clone())).unwrap();
    assert!(path.exists(), "it is opened at once");
    assert_eq!(say(shared, Level::Warn, "one"), "");
    log.configure(&LoggerSettings {
        show_level: Some(true),
        ..LoggerSettings::default()
    })
    .unwrap();
    say(shared, Level::Error, "two");
    log.configure(&LoggerSettings {
        show_origin: Some(true),
        ..LoggerSettings::default()
    })
    .unwrap();
    say(shared, Level::Warn, "three");
    shared.write_to_file("a table\nof two lines");
    let (me, got) = (me(), lines(fs::read(path).unwrap()));
    let expected = [
        format!("[vm-1:{me}] one"),
        format!("[vm-1:{me}:ERROR] two"),
        format!("[vm-1:{me}:WARN:src/x.rs:7] three"),
        format!("[vm-1:{me}] a table"),
        format!("[vm-1:{me}] of two lines"),
    ];
    assert_eq!(got, expected);
}

#[test]
fn stderr_shows_the_origin_too() {
    let (mut log, shared) = log();
    let settings = LoggerSettings {
        show_origin: Some(true),
        ..LoggerSettings::default()
    };
    log.configure(&settings).unwrap();
    let got = say(shared, Level::Warn, "x");
    assert_eq!(got, "mayfly: warn: src/x.rs:7: x\n");
}

#[test]
fn nothing_is_said_when_the_log_is_off() {
    let folder = Directory::new();
    let (mut log, shared) = log();
    let settings = LoggerSettings {
        level: Some(LevelFilter::Off),
        ..to(folder.path("log"))
    };
    log.configure(&settings).unwrap();
    say(shared, Level::Error, "x");
    shared.write_to_file("y");
    assert!(fs::read(folder.path("log")).unwrap().is_empty());
}

#[test]
fn a_module_has_those_below_it() {
    let (mut log, shared) = log();
    let mut choose = |module: &str| {
        let module = Some(module.to_owned());
        log.configure(&LoggerSettings {
            module,
            ..LoggerSettings::default()
        })
        .unwrap();
    };
    let is_said = |module| {
        let now = Instant::now() + Duration::from_secs(10);
        !say_from(shared, module, Level::Warn, "x", now).is_empty()
    };
    choose("api");
    assert!(is_said("api") && is_said("api::http"));
    assert!(!is_said("apis") && !is_said("vmm::api") && !is_said(""));
    choose("");
    assert!(is_said("apis"));
}

#[test]
fn a_flood_is_cut_in_a_file_too() {
    let folder = Directory::new();
    let (mut log, shared) = log();
    log.configure(&to(folder.path("log"))).unwrap();
    let start = Instant::now();
    (0..100).for_each(|_| drop(say_at(shared, Level::Warn, "x", start)));
    say_at(
        shared,
        Level::Warn,
        &"y".repeat(10_000),
        start + Duration::from_secs(1),
    );
    let lines = lines(fs::read(folder.path("log")).unwrap());
    assert_eq!(lines.len(), 21);
    let last = &lines[20];
    assert!(last.ends_with("yy (80 lines before this one were withheld)"));
}

#[test]
fn what_cannot_be_opened_changes_nothing() {
    let folder = Directory::new();
    let (mut log, shared) = log();
    let settings = LoggerSettings {
        level: Some(LevelFilter::Trace),
        ..to(folder.path("nowhere/log"))
    };
    let error = log.configure(&settings).unwrap_err();
    assert!(
        error.contains("nowhere/log") && error.contains("os error"),
        "{error}"
    );
    assert_eq!(say(shared, Level::Info, "x"), "");
    assert_eq!(say(shared, Level::Warn, "x"), "mayfly: warn: x\n");
    assert!(!log.reopen());
}

#[test]
fn a_file_that_was_moved_away_is_replaced() {
    let folder = Directory::new();
    let path = folder.path("log");
    let (mut log, shared) = log();
    assert!(!log.reopen(), "there is no file");
    log.configure(&to(path.clone())).unwrap();
    say(shared, Level::Warn, "one");
    fs::rename(&path, folder.path("log.1")).unwrap();
    say(shared, Level::Warn, "two");
    assert!(log.reopen());
    say(shared, Level::Warn, "three");
    assert_eq!(lines(fs::read(folder.path("log.1")).unwrap()).len(), 2);
    assert_eq!(lines(fs::read(path).unwrap()), [format!("[vm-1:{}] three", me())]);
}

#[test]
fn a_file_that_cannot_be_opened_again_serves_on() {
    let folder = Directory::new();
    fs::create_dir(folder.path("logs")).unwrap();
    let (mut log, shared) = log();
    log.configure(&to(folder.path("logs/log"))).unwrap();
    fs::rename(folder.path("logs"), folder.path("gone")).unwrap();
    assert!(log.reopen());
    say(shared, Level::Warn, "x");
    let lines = lines(fs::read(folder.path("gone/log")).unwrap());
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("warning: the log goes on where it was: cannot open "));
}

#[test]
fn a_fifo_needs_no_reader() {
    let folder = Directory::new();
    let path = folder.fifo("log");
    let (mut log, shared) = log();
    log.configure(&to(path.clone())).unwrap();
    say(shared, Level::Warn, "early");
    let got = lines(Reader::open(&path).read());
    assert_eq!(got, [format!("[vm-1:{}] early", me())]);
}

#[test]
fn a_line_has_the_name_of_its_thread() {
    let folder = Directory::new();
    let (mut log, shared) = log();
    log.configure(&to(folder.path("log"))).unwrap();
    for name in [Some("fc_vcpu 0"), None] {
        let builder = thread::Builder::new();
        let builder = match name {
            Some(name) => builder.name(name.into()),
            None => builder,
        };
        let said = builder.spawn(|| drop(say(shared, Level::Warn, "x"))).unwrap();
        said.join().unwrap();
    }
    let got = lines(fs::read(folder.path("log")).unwrap());
    assert_eq!(got, ["[vm-1:fc_vcpu 0] x", "[vm-1:-] x"]);
}
