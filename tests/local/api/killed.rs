//! mayfly is killed while it makes a snapshot: what is there then is the old one, the new one, or none.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::http::{self, Client};
use super::served::{ApiProcess, Directory};
use super::snapshot::{PAUSED, create, load_snapshot, pause_and_create};
use crate::calls::Stepped;

pub const CREATE: &str = "/snapshot/create";

/// Guest memory in MiB. All of it is compared each time.
const MEMORY: u32 = 8;

/// What a folder holds of a snapshot.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    state: Option<Vec<u8>>,
    memory: Option<Vec<u8>>,
}

impl Content {
    pub fn of(folder: &Path) -> Self {
        Self {
            state: fs::read(folder.join("state")).ok(),
            memory: fs::read(folder.join("memory")).ok(),
        }
    }

    /// Has new files hold it, with holes where there are zeros.
    pub fn put(&self, folder: &Path) {
        for (name, content) in [("state", &self.state), ("memory", &self.memory)] {
            let content = content.as_deref().unwrap();
            let path = folder.join(name);
            let _ = fs::remove_file(&path);
            let file = File::create_new(path).unwrap();
            file.set_len(content.len() as u64).unwrap();
            for (offset, page) in (0..).step_by(4096).zip(content.chunks(4096)) {
                if page.iter().any(|byte| *byte != 0) {
                    file.write_all_at(page, offset).unwrap();
                }
            }
        }
    }
}

/// A guest of little memory that has counted for a while.
pub fn small() -> ApiProcess {
    let mut served = ApiProcess::start();
    let machine = format!(r#"{{"vcpu_count":1,"mem_size_mib":{MEMORY}}}"#);
    served.expect_no_content("PUT", "/machine-config", &machine);
    served.boots("ticker.elf");
    served.act("InstanceStart");
    served.expect("tick 3\n");
    served
}

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        // Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// When a process is killed: how many stops before and after system calls it has made, and how long ago it left the last one;
/// none when it has not.
#[derive(Clone, Copy)]
pub struct Moment {
    stops: usize,
    after: Option<Duration>,
}

impl Moment {
    /// Once the answer is there.
    pub const LAST: Self = Self::at(usize::MAX);

    const fn at(stops: usize) -> Self {
        Self { stops, after: None }
    }

    /// `count` moments that are spread over `stops`, each other one at some time behind a stop.
    pub fn spread(stops: usize, count: usize) -> impl Iterator<Item = Self> {
        let mut random = Random(count as u64);
        (0..count).map(move |number| {
            let behind = !number.is_multiple_of(2);
            Self {
                stops: 1 + number * stops / count,
                after: behind.then(|| Duration::from_micros(random.below(60))),
            }
        })
    }
}

/// Has `served` do what is `asked` of the path until `stops` stops have been made, or it has answered. How many there were, where
/// it is held, and where the answer comes.
pub fn interrupt(served: &ApiProcess, path: &str, asked: &str, stops: usize) -> (usize, Stepped, Client) {
    let mut client = served.connect();
    // Once it has answered, the connection is its own.
    assert_eq!(client.ask("GET", "/", "").status(), 200);
    let stepped = Stepped::seize(served.id());
    client.send(http::go("PUT", path, asked));
    let mut made = 0;
    while made < stops && !has_answered(&client) {
        stepped.step();
        made += 1;
    }
    (made, stepped, client)
}

fn has_answered(client: &Client) -> bool {
    let mut poll = libc::pollfd {
        fd: client.stream().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: there is one structure, valid for reads and writes.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Snapshots into one folder by mayflies that do not survive it.
pub struct Series {
    kind: &'static str,
    /// Has the snapshot.
    folder: PathBuf,
    /// Has what each would have written.
    other: Directory,
    /// Of old, of new and of no snapshots.
    pub found: [usize; 3],
}

impl Series {
    pub fn new(kind: &'static str, folder: &Path) -> Self {
        let other = Directory::new();
        let served = small();
        pause_and_create(&served, &other, "Full", "state", "memory");
        served.kill();
        Content::of(&other.path("")).put(folder);
        Self {
            kind,
            folder: folder.to_owned(),
            other,
            found: [0; 3],
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    pub fn request(&self) -> String {
        let (kind, state, memory) = (self.kind, self.path("state"), self.path("memory"));
        format!(r#"{{"snapshot_type":"{kind}","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#)
    }

    /// One that has gone on from the snapshot for a while, and is paused.
    pub fn restored(&self) -> ApiProcess {
        let (state, memory) = (self.path("state"), self.path("memory"));
        let backend = format!(r#"{{"backend_type":"File","backend_path":"{memory}"}}"#);
        let load = format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend},"resume_vm":true}}"#);
        let mut served = ApiProcess::start();
        served.expect_no_content("PUT", "/snapshot/load", &load);
        served.expect("tick ");
        served.expect("tick ");
        served.expect_no_content("PATCH", "/vm", PAUSED);
        served
    }

    /// Kills one, and looks at what is there. How many stops it made.
    pub fn round(&mut self, moment: Moment) -> usize {
        let old = Content::of(&self.folder);
        let served = self.restored();
        // It is paused, so that its memory is the same twice.
        let answer = create(&served, &self.other, "Full", "state", "memory");
        assert_eq!(answer.text, http::DONE);
        let (stops, stepped, _client) = interrupt(&served, CREATE, &self.request(), moment.stops);
        if let Some(after) = moment.after {
            stepped.release();
            let begin = Instant::now();
            while begin.elapsed() < after {
                std::hint::spin_loop();
            }
        }
        served.kill();
        let now = Content::of(&self.folder);
        let new = fs::read(self.other.path("memory")).unwrap();
        if now.state.is_none() {
            self.found[2] += 1;
            old.put(&self.folder);
        } else if now.state == old.state {
            assert!(now.memory == old.memory, "the old state is beside another memory");
            self.found[0] += 1;
        } else {
            assert!(now.memory == Some(new), "the new state is beside another memory");
            self.found[1] += 1;
        }
        stops
    }

    /// Kills `count` at moments that are spread over all that they do.
    fn run(&mut self, count: usize) {
        // Who comes after one that was killed has more to do.
        let alone = self.round(Moment::LAST);
        self.round(Moment::at(alone / 2));
        let stops = self.round(Moment::LAST);
        Moment::spread(stops, count).for_each(|moment| {
            self.round(moment);
        });
        assert!(self.found.iter().all(|found| *found > 0), "{:?}", self.found);
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Kills `count` of them; after that, one that is not killed leaves nothing behind.
fn series(kind: &'static str, count: usize) {
    let folder = Directory::new();
    let mut series = Series::new(kind, &folder.path(""));
    series.run(count);
    let served = series.restored();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    assert_eq!(names(&folder.path("")), ["memory", "state"]);
    served.kill();
    let mut last = load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#);
    last.expect("tick ");
}

#[test]
fn killed_while_it_writes_all() {
    series("Full", 80);
}

#[test]
fn killed_while_it_changes_the_base() {
    series("Diff", 80);
}
