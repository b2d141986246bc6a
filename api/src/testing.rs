//! Fixtures for the tests of this crate.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use scratch::Directory;
use serde_json::Value;
use vmm::control::{Control, OpenFile, Timeline};

use crate::http::{Method, Reply, Request, Response, Server};
use crate::process::{Instance, LogControl, LoggerSettings};
use crate::service::Api;

/// Log that records its settings, and rejects the module `wrong`.
#[derive(Clone, Default)]
pub(crate) struct Log(pub(crate) Rc<RefCell<Vec<LoggerSettings>>>);

impl LogControl for Log {
    fn configure(&mut self, settings: &LoggerSettings) -> Result<(), String> {
        if settings.module.as_deref() == Some("wrong") {
            return Err("there is no such module".into());
        }
        self.0.borrow_mut().push(settings.clone());
        Ok(())
    }

    fn open_files(&self) -> Vec<OpenFile> {
        Vec::new()
    }

    fn missed_messages(&self) -> u64 {
        0
    }

    fn reopen(&mut self) -> bool {
        self.0.borrow().iter().any(|settings| settings.path.is_some())
    }
}

/// VM with an API, and a directory of files for it.
pub(crate) struct Fixture {
    pub(crate) api: Api,
    pub(crate) control: Control,
    pub(crate) log: Log,
    directory: Directory,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|_| None)
    }

    /// Creates a fixture with the server that `serve` returns, given a path for the socket.
    pub(crate) fn with(serve: impl FnOnce(&Path) -> Option<Server>) -> Self {
        let directory = Directory::new();
        directory.write("kernel", kernel());
        directory.write("initrd", "initrd");
        directory.write("disk", [0; 512]);
        directory.write("empty", "");
        let instance = Instance {
            id: "vm-1".into(),
            version: "1.2.3".into(),
            app_name: "mayfly".into(),
        };
        let log = Log::default();
        let server = serve(&directory.path("socket"));
        Self {
            api: Api::new(instance, server, Box::new(log.clone())).unwrap(),
            control: control(),
            log,
            directory,
        }
    }

    /// Replaces the VM by one without configuration.
    pub(crate) fn reset(&mut self) {
        self.control = control();
    }

    /// Replaces each `@` in `text` by the directory.
    pub(crate) fn at(&self, text: &str) -> String {
        text.replace('@', self.directory.root().to_str().unwrap())
    }

    pub(crate) fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Response {
        let request = Request {
            method: Method::new(method),
            path: path.to_owned(),
            query: None,
            body: body.to_owned(),
            upgrade: None,
        };
        match self.api.handle(&mut self.control, &request) {
            Reply::Response(response) => response,
            other => panic!("{method} {path}: {other:?}"),
        }
    }

    /// Sends a request that must succeed; `@` in the body is the directory.
    pub(crate) fn expect_no_content(&mut self, method: &str, path: &str, body: &str) {
        let response = self.request(method, path, self.at(body).as_bytes());
        let text = String::from_utf8_lossy(response.body()).into_owned();
        assert_eq!(
            (response.status(), text.as_str()),
            (204, ""),
            "{method} {path} {body}"
        );
    }

    /// Sends a request that must be rejected, and returns the reason.
    pub(crate) fn expect_fault(&mut self, method: &str, path: &str, body: &str) -> String {
        let response = self.request(method, path, self.at(body).as_bytes());
        assert_eq!(response.status(), 400, "{method} {path} {body}");
        let fault: Value = serde_json::from_slice(response.body()).unwrap();
        let text = fault["fault_message"].as_str().unwrap();
        text.replace(self.directory.root().to_str().unwrap(), "@")
    }

    /// Sends `GET`, which must succeed, and returns the body.
    pub(crate) fn get(&mut self, path: &str) -> Value {
        let response = self.request("GET", path, b"");
        assert_eq!(response.status(), 200, "{path}");
        let text =
            String::from_utf8_lossy(response.body()).replace(self.directory.root().to_str().unwrap(), "@");
        serde_json::from_str(&text).unwrap()
    }
}

fn control() -> Control {
    let timeline = Arc::new(Timeline::new(Instant::now(), false));
    Control::new(Box::new(|| Err("there is no console".into())), timeline)
}

/// Returns an ELF64 executable for x86_64 with one segment of one byte, `hlt`, at 1 MiB.
fn kernel() -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    for half in [2_u16, 62] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend_from_slice(&1_u32.to_le_bytes());
    for word in [0x10_0000_u64, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    for flag in [1_u32, 5] {
        file.extend_from_slice(&flag.to_le_bytes());
    }
    for word in [120_u64, 0x10_0000, 0x10_0000, 1, 1, 1] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.push(0xf4);
    file
}

/// Reads the OpenAPI specification, with unresolved references.
pub(crate) fn specification() -> Value {
    serde_yaml_ng::from_str(include_str!("../../resources/openapi.yaml")).unwrap()
}

/// Resolves a reference in `schema`, direct or in `allOf`.
pub(crate) fn resolve<'a>(specification: &'a Value, schema: &'a Value) -> &'a Value {
    let schema = schema.get("allOf").map_or(schema, |all| &all[0]);
    match schema.get("$ref").and_then(Value::as_str) {
        Some(place) => specification.pointer(place.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    }
}
