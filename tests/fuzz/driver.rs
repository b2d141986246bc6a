//! Drive of a target: corpus, mutated inputs, and reports.

use std::io::{Write, stderr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use scratch::TIMEOUT;

use super::allocation;
use super::mutator::Mutator;
use super::targets::{TARGETS, Target};

/// Seed of the mutator without `FUZZ_SEED`.
const SEED: u64 = 11;
/// Duration of a drive in seconds without `FUZZ_SECONDS`.
const SECONDS: u64 = 1;
/// Maximum heap for one input, in addition to a multiple of its length.
const MAX_HEAP: usize = 4 << 20;
/// Maximum heap for each byte of an input.
const HEAP_PER_BYTE: usize = 64;

fn variable<T: FromStr>(name: &str, default: T) -> T {
    let Ok(text) = env::var(name) else {
        return default;
    };
    text.parse()
        .unwrap_or_else(|_| panic!("{name}={text} is not a number"))
}

/// Prints a line past the capture of the test harness.
fn print(line: &str) {
    // In one write, because other tests print too.
    let _ = stderr().write_all(format!("{line}\n").as_bytes());
}

/// Checks the corpus of target `name` and mutated inputs.
pub fn drive(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    if target.needs_kvm && !Path::new("/dev/kvm").exists() {
        return scratch::skip("/dev/kvm", "run the tests on a host with KVM");
    }
    let mut run = Run::new(*target);
    if let Some(path) = env::var_os("FUZZ_INPUT") {
        return run.check(&fs::read(path).unwrap());
    }
    let corpus = corpus(name);
    for input in &corpus {
        run.check(input);
    }
    let seed = variable("FUZZ_SEED", SEED);
    let limit = Duration::from_secs(variable("FUZZ_SECONDS", SECONDS));
    let mut mutator = Mutator::new(seed, &corpus, target.dictionary, target.max_length);
    let start = Instant::now();
    let mut count = 0_u64;
    while start.elapsed() < limit {
        run.check(&mutator.next());
        count += 1;
    }
    let rate = u128::from(count) * 1000 / start.elapsed().as_millis().max(1);
    print(&format!(
        "fuzz {name}: seed {seed}, {} files, {count} inputs, {rate}/s, slowest {} ms, heap {} KiB",
        corpus.len(),
        run.slowest.as_millis(),
        run.heap >> 10
    ));
}

/// Returns the corpus of target `name`, in the order of the file names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{directory:?} is empty");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Input in work, with its start.
type Current = Arc<Mutex<Option<(Instant, Vec<u8>)>>>;

/// Runs a target and reports failures.
struct Run {
    target: Target,
    current: Current,
    slowest: Duration,
    heap: usize,
    /// Ends the watchdog on drop.
    _end: std::sync::mpsc::Sender<()>,
}

impl Run {
    fn new(target: Target) -> Self {
        let current = Current::default();
        let (sender, receiver) = channel();
        let watched = current.clone();
        thread::spawn(move || watch(target.name, &watched, &receiver));
        Self {
            target,
            current,
            slowest: Duration::ZERO,
            heap: 0,
            _end: sender,
        }
    }

    /// Checks one input. On a failure, saves it and panics.
    fn check(&mut self, input: &[u8]) {
        let start = Instant::now();
        *self.current.lock().unwrap() = Some((start, input.to_vec()));
        allocation::reset();
        let result = catch_unwind(AssertUnwindSafe(|| {
            (self.target.run)(input);
            let (heap, limit) = (allocation::peak(), MAX_HEAP + HEAP_PER_BYTE * input.len());
            assert!(heap <= limit, "the heap grew by {heap} bytes, more than {limit}");
            heap
        }));
        self.current.lock().unwrap().take();
        self.slowest = self.slowest.max(start.elapsed());
        match result {
            Ok(heap) => self.heap = self.heap.max(heap),
            Err(panic) => {
                report(self.target.name, input);
                resume_unwind(panic);
            }
        }
    }
}

/// Saves a failed input and prints the command that repeats it.
fn report(name: &str, input: &[u8]) {
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let path = format!("{}/fuzz-{name}-{hash:016x}", env!("CARGO_TARGET_TMPDIR"));
    fs::write(&path, input).unwrap();
    print(&format!(
        "fuzz {name}: failed; repeat it by\n    FUZZ_INPUT={path} cargo test --test fuzz -- --exact {name}"
    ));
}

/// Ends the process if an input takes longer than [`scratch::TIMEOUT`].
fn watch(name: &str, current: &Current, end: &Receiver<()>) {
    while end.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
        let current = current.lock().unwrap();
        if let Some((start, input)) = &*current
            && start.elapsed() > TIMEOUT
        {
            report(name, input);
            print(&format!("fuzz {name}: an input takes longer than {TIMEOUT:?}"));
            process::abort();
        }
    }
}
