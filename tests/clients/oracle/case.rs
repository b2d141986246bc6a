//! Requests, and their execution by one VMM.

use super::outcome::{self, State};
use super::process::{Process, Vmm};

/// A request as its sender writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Description, unique in a case.
    pub name: String,
    /// Bytes of each request on one connection. The next one follows the response to the one before.
    pub parts: Vec<Vec<u8>>,
}

/// Maximum length of a body in a name.
const MAX_NAME: usize = 300;

impl Request {
    /// Creates a well-formed request.
    pub fn new(method: &str, path: &str, body: Option<&str>) -> Self {
        let mut name = format!("{method} {path}");
        match body {
            Some(body) if body.len() > MAX_NAME => name.push_str(&format!(" ({} bytes)", body.len())),
            Some(body) => name.push_str(&format!(" {body}")),
            None => {}
        }
        Self {
            name: name.trim_end().to_owned(),
            parts: vec![outcome::request(method, path, body)],
        }
    }

    /// Parses `METHOD PATH [BODY]`.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, ' ');
        let (method, path) = (parts.next().unwrap(), parts.next().unwrap());
        Self::new(method, path, parts.next())
    }
}

/// Requests to one VMM.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name, unique in a run.
    pub name: String,
    /// Kernel image of the directory.
    pub kernel: String,
    /// Requests before the observation, all successful.
    pub setup: Vec<Request>,
    /// Observed requests.
    pub requests: Vec<Request>,
}

/// A request with its outcome.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Case and request.
    pub request: String,
    /// Outcome as text.
    pub outcome: String,
}

/// Returns the text of all requests of `case`.
fn sent(case: &Case) -> String {
    let requests = case.setup.iter().chain(&case.requests);
    let parts = requests.flat_map(|request| &request.parts);
    let texts = parts.map(|part| String::from_utf8_lossy(part).to_lowercase());
    texts.collect()
}

/// A process after its setup.
struct Prepared {
    process: Process,
    kernel: String,
    setup: Vec<Request>,
    /// Version of the VMM, as JSON.
    version: String,
    /// State before the first observed request.
    before: State,
}

impl Prepared {
    fn new(vmm: Vmm, case: &Case) -> Self {
        let process = Process::start(vmm, &case.kernel);
        for request in &case.setup {
            let responses = process.exchange(&request.parts);
            let is_success = responses
                .first()
                .is_some_and(|response| response.head.starts_with("HTTP/1.1 20"));
            assert!(
                is_success,
                "{vmm:?}, setup of {}: {}: {responses:?}",
                case.name, request.name
            );
        }
        let before =
            State::query(&process, &sent(case)).unwrap_or_else(|| panic!("{vmm:?} ended in {}", case.name));
        Self {
            kernel: case.kernel.clone(),
            setup: case.setup.clone(),
            version: process.version(),
            process,
            before,
        }
    }

    fn fits(&self, case: &Case) -> bool {
        self.kernel == case.kernel && self.setup == case.setup
    }
}

/// End of Firecracker by its seccomp filter, SIGSYS.
const SECCOMP_END: &str = "signal 31";

/// Runs `cases` on `vmm`. A case starts on a new process, unless the one before had the same setup and changed nothing.
pub fn run(vmm: Vmm, cases: &[Case]) -> Vec<Observation> {
    let mut observations = Vec::new();
    let mut prepared: Option<Prepared> = None;
    for case in cases {
        let mut current = prepared
            .take_if(|prepared| prepared.fits(case))
            .unwrap_or_else(|| Prepared::new(vmm, case));
        let mut is_reusable = true;
        let mut last = current.before.clone();
        for (index, request) in case.requests.iter().enumerate() {
            let responses = current.process.exchange(&request.parts);
            let mut parts: Vec<String> = responses.iter().map(outcome::describe).collect();
            is_reusable &= responses.len() == request.parts.len()
                && responses
                    .iter()
                    .all(|response| response.head.starts_with("HTTP/1.1 4"));
            let state = State::query(&current.process, &sent(case));
            match &state {
                Some(state) => {
                    if responses.len() < request.parts.len() {
                        parts.push("connection closed".to_owned());
                    }
                    let changes = state.changes(&last);
                    if !changes.is_empty() {
                        parts.push(format!("changes {changes}"));
                    }
                    last = state.clone();
                }
                None => {
                    let end = current.process.wait();
                    // The seccomp filter of Firecracker now and then ends it after its response to a long request.
                    if responses.is_empty() || end != SECCOMP_END {
                        parts.push(end);
                    }
                }
            }
            let step = match case.requests.len() {
                1 => String::new(),
                _ => format!(", {}", index + 1),
            };
            observations.push(Observation {
                request: format!("{}{step}: {}", case.name, request.name),
                outcome: parts.join("; ").replace(&current.version, "VERSION"),
            });
            if state.is_none() {
                is_reusable = false;
                // The other VMM may not have ended: its further requests are observed alike.
                let rest = case.requests.iter().enumerate().skip(index + 1);
                observations.extend(rest.map(|(index, request)| Observation {
                    request: format!("{}, {}: {}", case.name, index + 1, request.name),
                    outcome: "not sent".to_owned(),
                }));
                break;
            }
        }
        is_reusable &= last == current.before;
        prepared = is_reusable.then_some(current);
    }
    observations
}
