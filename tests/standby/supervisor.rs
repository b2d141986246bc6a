//! The process of a supervisor, and requests to it. The tests with real instances use it, too.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use api::client::Client;
use serde_json::{Value, json};

/// A supervisor with a directory of its own.
pub struct Supervisor {
    pub directory: scratch::Directory,
    program: PathBuf,
    process: Option<Child>,
    options: Vec<String>,
    /// User of the supervisor, if it is another one.
    user: Option<u32>,
}

impl Supervisor {
    /// Starts `program` with `options`. The directory has the snapshot of its instances.
    pub fn launch(program: PathBuf, directory: scratch::Directory, options: &[&str]) -> Self {
        let mut supervisor = Self {
            directory,
            program,
            process: None,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            user: None,
        };
        supervisor.restart();
        supervisor
    }

    /// Starts the supervisor as `user` from now on, which only root can.
    #[allow(dead_code, reason = "the tests with real instances do not use it")]
    pub fn set_user(&mut self, user: u32) {
        self.user = Some(user);
    }

    /// Starts a supervisor with the same state directory.
    pub fn restart(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path("log"))
            .unwrap();
        let mut command = Command::new(&self.program);
        command.args([
            "--api-sock",
            &self.directory.text("sock"),
            "--state-dir",
            &self.directory.text("state"),
        ]);
        command
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        self.process = Some(command.spawn().unwrap());
        scratch::wait_until("the supervisor serves its API", || {
            self.try_request("GET", "/", None).is_some()
        });
    }

    /// Kills the supervisor if it runs.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = scratch::wait_exit(&mut process);
        }
    }

    /// Returns the process ID of the supervisor.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Sends it a signal.
    #[allow(dead_code, reason = "the tests with real instances do not use it")]
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.pid()).unwrap();
        // SAFETY: the call takes no pointer.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Returns its messages.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path("log")).unwrap()
    }

    fn client(&self) -> Client {
        Client::new(self.directory.path("sock"), scratch::TIMEOUT)
    }

    fn try_request(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let body = body.map(|body| body.to_string().into_bytes());
        let response = self.client().request(method, path, body.as_deref()).ok()?;
        let text = String::from_utf8_lossy(&response.body).into_owned();
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Some((response.status, value))
    }

    /// Sends a request, and returns status and body.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_request(method, path, body)
            .unwrap_or_else(|| panic!("no response to {method} {path}: {}", self.log()))
    }

    /// Sends a request that must succeed.
    pub fn expect(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, body) = self.request(method, path, body);
        assert!(matches!(status, 200 | 204), "{method} {path}: {status} {body}");
        body
    }

    /// Sends a request that must be rejected with `status`, and returns the reason.
    pub fn expect_rejection(&self, status: u16, method: &str, path: &str, body: Option<&Value>) -> String {
        let (found, body) = self.request(method, path, body);
        assert_eq!(found, status, "{method} {path}: {body}");
        body["fault_message"].as_str().unwrap().to_owned()
    }

    /// Returns a body with the snapshot and `more`.
    pub fn body(&self, more: Value) -> Value {
        let mut body = json!({"snapshot_path": self.directory.text("snapshot")});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    }

    /// Registers an instance.
    pub fn register(&self, id: &str, more: Value) {
        self.expect("PUT", &format!("/instances/{id}"), Some(&self.body(more)));
    }

    /// Requests a state.
    pub fn set(&self, id: &str, state: &str) {
        self.expect(
            "PUT",
            &format!("/instances/{id}/state"),
            Some(&json!({ "state": state })),
        );
    }

    /// Returns an instance.
    pub fn get(&self, id: &str) -> Value {
        self.expect("GET", &format!("/instances/{id}"), None)
    }

    /// Waits until an instance is in `state`, and returns its reason.
    pub fn await_state(&self, id: &str, state: &str) -> String {
        let what = format!("{id} is {state}");
        let mut last = Value::Null;
        scratch::wait_until(&what, || {
            last = self.get(id);
            last["state"] == state
        });
        last["reason"].as_str().unwrap().to_owned()
    }

    /// Returns the value of a metric with its labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.expect("GET", "/metrics", None);
        let text = text.as_str().unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }
}
