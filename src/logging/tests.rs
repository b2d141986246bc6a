use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use api::process::{LogControl, LoggerSettings};
use api::request_log;
use log::{Level, LevelFilter, Log, Record};
use scratch::{Directory, Reader};

use super::{ProcessLog, SharedLog};

/// Returns a log that no other test shares.
fn log() -> (ProcessLog, &'static SharedLog) {
    let shared = Box::leak(Box::new(SharedLog::new()));
    (ProcessLog::with_log("vm-1", shared), shared)
}

fn settings_for(path: PathBuf) -> LoggerSettings {
    LoggerSettings {
        path: Some(path),
        ..LoggerSettings::default()
    }
}

/// Logs `text` from the module `api::http`, and returns the output on stderr.
fn write(shared: &SharedLog, level: Level, text: &str) -> String {
    write_at(shared, level, text, Instant::now())
}

fn write_at(shared: &SharedLog, level: Level, text: &str, now: Instant) -> String {
    write_from(shared, "api::http", level, text, now)
}

fn write_from(shared: &SharedLog, module: &str, level: Level, text: &str, now: Instant) -> String {
    let mut output = String::new();
    let mut record = Record::builder();
    record.level(level).target(module).module_path(Some(module));
    record.file(Some("src/x.rs")).line(Some(7));
    let mut write = |record: &Record<'_>| shared.write_record(record, now, |text| output.push_str(text));
    write(&record.args(format_args!("{text}")).build());
    output
}

/// Returns the lines of the file without their timestamps.
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

/// Returns the name of this test's thread.
fn thread_name() -> String {
    thread::current().name().unwrap().to_owned()
}

#[test]
fn default_is_warnings_on_stderr() {
    let (_, shared) = log();
    assert_eq!(write(shared, Level::Warn, "a\nb"), "mayfly: warn: a\\nb\n");
    assert_eq!(write(shared, Level::Info, "x"), "");
    let metadata = |level| log::Metadata::builder().level(level).build();
    assert!(shared.enabled(&metadata(Level::Warn)) && !shared.enabled(&metadata(Level::Info)));
}

#[test]
fn level_is_configurable() {
    let (mut log, shared) = log();
    for (filter, count) in [
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
        // More than a period later: the budget is unspent.
        let now = Instant::now() + Duration::from_secs(10);
        let levels = Level::iter().filter(|level| !write_at(shared, *level, "x", now).is_empty());
        assert_eq!(levels.count(), count, "{filter}");
    }
}

#[test]
fn absent_settings_stay_unchanged() {
    let directory = Directory::new();
    let (mut log, shared) = log();
    log.configure(&LoggerSettings {
        path: Some(directory.path("log")),
        level: Some(LevelFilter::Info),
        show_level: Some(true),
        show_origin: Some(true),
        module: Some("api".into()),
    })
    .unwrap();
    log.configure(&LoggerSettings::default()).unwrap();
    let now = Instant::now();
    assert_eq!(write_from(shared, "api", Level::Info, "x", now), "");
    assert_eq!(write_from(shared, "vmm", Level::Info, "y", now), "");
    let output = lines(fs::read(directory.path("log")).unwrap());
    assert_eq!(output, [format!("[vm-1:{}:INFO:src/x.rs:7] x", thread_name())]);
}

#[test]
fn file_replaces_stderr() {
    let directory = Directory::new();
    let path = directory.path("log");
    let (mut log, shared) = log();
    log.configure(&settings_for(path.clone())).unwrap();
    assert!(path.exists(), "configure creates the file");
    assert_eq!(write(shared, Level::Warn, "one"), "");
    log.configure(&LoggerSettings {
        show_level: Some(true),
        ..LoggerSettings::default()
    })
    .unwrap();
    write(shared, Level::Error, "two");
    log.configure(&LoggerSettings {
        show_origin: Some(true),
        ..LoggerSettings::default()
    })
    .unwrap();
    write(shared, Level::Warn, "three");
    shared.write_to_file("a table\nof two lines");
    let (name, output) = (thread_name(), lines(fs::read(path).unwrap()));
    let expected = [
        format!("[vm-1:{name}] one"),
        format!("[vm-1:{name}:ERROR] two"),
        format!("[vm-1:{name}:WARN:src/x.rs:7] three"),
        format!("[vm-1:{name}] a table"),
        format!("[vm-1:{name}] of two lines"),
    ];
    assert_eq!(output, expected);
}

#[test]
fn stderr_shows_origin() {
    let (mut log, shared) = log();
    let settings = LoggerSettings {
        show_origin: Some(true),
        ..LoggerSettings::default()
    };
    log.configure(&settings).unwrap();
    let output = write(shared, Level::Warn, "x");
    assert_eq!(output, "mayfly: warn: src/x.rs:7: x\n");
}

#[test]
fn level_off_drops_all_messages() {
    let directory = Directory::new();
    let (mut log, shared) = log();
    let settings = LoggerSettings {
        level: Some(LevelFilter::Off),
        ..settings_for(directory.path("log"))
    };
    log.configure(&settings).unwrap();
    write(shared, Level::Error, "x");
    shared.write_to_file("y");
    assert!(fs::read(directory.path("log")).unwrap().is_empty());
}

#[test]
fn module_filter_includes_submodules() {
    let (mut log, shared) = log();
    let mut set_module = |module: &str| {
        let module = Some(module.to_owned());
        log.configure(&LoggerSettings {
            module,
            ..LoggerSettings::default()
        })
        .unwrap();
    };
    let is_logged = |module| {
        let now = Instant::now() + Duration::from_secs(10);
        !write_from(shared, module, Level::Warn, "x", now).is_empty()
    };
    set_module("api");
    assert!(is_logged("api") && is_logged("api::http"));
    assert!(!is_logged("apis") && !is_logged("vmm::api") && !is_logged(""));
    set_module("");
    assert!(is_logged("apis"));
}

#[test]
fn flood_is_limited_in_file() {
    let directory = Directory::new();
    let (mut log, shared) = log();
    log.configure(&settings_for(directory.path("log"))).unwrap();
    let start = Instant::now();
    (0..100).for_each(|_| drop(write_at(shared, Level::Warn, "x", start)));
    write_at(
        shared,
        Level::Warn,
        &"y".repeat(10_000),
        start + Duration::from_secs(1),
    );
    let lines = lines(fs::read(directory.path("log")).unwrap());
    assert_eq!(lines.len(), 21);
    let last = &lines[20];
    assert!(last.ends_with("yy (80 lines before this one were dropped)"));
}

#[test]
fn file_that_cannot_open_changes_nothing() {
    let directory = Directory::new();
    let (mut log, shared) = log();
    let settings = LoggerSettings {
        level: Some(LevelFilter::Trace),
        ..settings_for(directory.path("nowhere/log"))
    };
    let error = log.configure(&settings).unwrap_err();
    assert!(
        error.contains("nowhere/log") && error.contains("os error"),
        "{error}"
    );
    assert_eq!(write(shared, Level::Info, "x"), "");
    assert_eq!(write(shared, Level::Warn, "x"), "mayfly: warn: x\n");
    assert!(!log.reopen());
}

#[test]
fn reopen_replaces_moved_file() {
    let directory = Directory::new();
    let path = directory.path("log");
    let (mut log, shared) = log();
    assert!(!log.reopen(), "no file is configured");
    log.configure(&settings_for(path.clone())).unwrap();
    write(shared, Level::Warn, "one");
    fs::rename(&path, directory.path("log.1")).unwrap();
    write(shared, Level::Warn, "two");
    assert!(log.reopen());
    write(shared, Level::Warn, "three");
    assert_eq!(lines(fs::read(directory.path("log.1")).unwrap()).len(), 2);
    assert_eq!(
        lines(fs::read(path).unwrap()),
        [format!("[vm-1:{}] three", thread_name())]
    );
}

#[test]
fn file_that_cannot_reopen_stays_in_use() {
    let directory = Directory::new();
    fs::create_dir(directory.path("logs")).unwrap();
    let (mut log, shared) = log();
    log.configure(&settings_for(directory.path("logs/log"))).unwrap();
    fs::rename(directory.path("logs"), directory.path("gone")).unwrap();
    assert!(log.reopen());
    write(shared, Level::Warn, "x");
    let lines = lines(fs::read(directory.path("gone/log")).unwrap());
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("warning: cannot reopen the log, which stays in the old file: cannot open "));
}

#[test]
fn fifo_without_reader_keeps_lines() {
    let directory = Directory::new();
    let path = directory.fifo("log");
    let (mut log, shared) = log();
    log.configure(&settings_for(path.clone())).unwrap();
    write(shared, Level::Warn, "early");
    let output = lines(Reader::open(&path).read());
    assert_eq!(output, [format!("[vm-1:{}] early", thread_name())]);
}

#[test]
fn line_shows_thread_name() {
    let directory = Directory::new();
    let (mut log, shared) = log();
    log.configure(&settings_for(directory.path("log"))).unwrap();
    for name in [Some("fc_vcpu 0"), None] {
        let builder = thread::Builder::new();
        let builder = match name {
            Some(name) => builder.name(name.into()),
            None => builder,
        };
        let handle = builder.spawn(|| drop(write(shared, Level::Warn, "x"))).unwrap();
        scratch::join(handle);
    }
    let output = lines(fs::read(directory.path("log")).unwrap());
    assert_eq!(output, ["[vm-1:fc_vcpu 0] x", "[vm-1:-] x"]);
}

fn write_request(shared: &SharedLog, level: Level, text: &str) -> String {
    write_from(shared, request_log::TARGET, level, text, Instant::now())
}

#[test]
fn words_of_firecracker_need_file_or_level() {
    let directory = Directory::new();
    let (mut log, shared) = log();
    assert_eq!(write_request(shared, Level::Error, "x"), "", "stderr stays quiet");
    let settings = LoggerSettings {
        level: Some(LevelFilter::Error),
        ..LoggerSettings::default()
    };
    log.configure(&settings).unwrap();
    assert_eq!(write_request(shared, Level::Error, "x"), "mayfly: error: x\n");
    let (mut log, shared) = self::log();
    log.configure(&settings_for(directory.path("log"))).unwrap();
    // More than the limit of other messages.
    for _ in 0..100 {
        write_request(shared, Level::Info, "request");
    }
    write_request(shared, Level::Debug, "detail");
    let output = lines(fs::read(directory.path("log")).unwrap());
    assert_eq!(output, vec![format!("[vm-1:{}] request", thread_name()); 100]);
    assert_eq!(log.missed_messages(), 0);
}

#[test]
fn dropped_messages_are_counted() {
    let directory = Directory::new();
    let (mut log, shared) = log();
    log.configure(&settings_for("/dev/full".into())).unwrap();
    write(shared, Level::Warn, "lost");
    assert_eq!(log.missed_messages(), 1);
    log.configure(&settings_for(directory.path("log"))).unwrap();
    let now = Instant::now() + Duration::from_secs(10);
    for _ in 0..30 {
        write_at(shared, Level::Warn, "flood", now);
    }
    write_at(shared, Level::Warn, "later", now + Duration::from_secs(2));
    assert_eq!(log.missed_messages(), 11);
}
