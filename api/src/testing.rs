//! What the tests of this crate share.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use scratch::Directory;
use serde_json::Value;
use vmm::control::{Control, Timeline};

use crate::http::{Method, Request, Response, Server};
use crate::logger::{LogControl, LoggerSettings};
use crate::service::{Api, Instance};

/// A log that only remembers what it was asked for; it refuses the module `wrong`.
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

    fn reopen(&mut self) -> bool {
        self.0.borrow().iter().any(|settings| settings.path.is_some())
    }
}

/// A VM with an API, and a folder with what it may need.
pub(crate) struct Bench {
    pub(crate) api: Api,
    pub(crate) control: Control,
    pub(crate) log: Log,
    folder: Directory,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(|_| None)
    }

    /// With the server that `serve` makes, given a path for its socket.
    pub(crate) fn with(serve: impl FnOnce(&Path) -> Option<Server>) -> Self {
        let folder = Directory::new();
        folder.write("kernel", kernel());
        folder.write("initrd", "initrd");
        folder.write("disk", [0; 512]);
        folder.write("empty", "");
        let instance = Instance {
            id: "vm-1".into(),
            version: "1.2.3".into(),
            app_name: "mayfly".into(),
        };
        let log = Log::default();
        let server = serve(&folder.path("socket"));
        Self {
            api: Api::new(instance, server, Box::new(log.clone())).unwrap(),
            control: control(),
            log,
            folder,
        }
    }

    /// Puts a VM of which nothing is known in the place of the present one.
    pub(crate) fn forget(&mut self) {
        self.control = control();
    }

    /// `text` with the folder of the test for each `@`.
    pub(crate) fn at(&self, text: &str) -> String {
        text.replace('@', self.folder.root().to_str().unwrap())
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Response {
        let request = Request {
            method: Method::new(method),
            path: path.to_owned(),
            query: None,
            body: body.to_owned(),
        };
        self.api.answer(&mut self.control, &request)
    }

    /// Asks for what must be done; `@` in the body is the folder of the test.
    pub(crate) fn done(&mut self, method: &str, path: &str, body: &str) {
        let response = self.ask(method, path, self.at(body).as_bytes());
        let text = String::from_utf8_lossy(response.body()).into_owned();
        assert_eq!(
            (response.status(), text.as_str()),
            (204, ""),
            "{method} {path} {body}"
        );
    }

    /// Asks for what must be refused, and returns why.
    pub(crate) fn fault(&mut self, method: &str, path: &str, body: &str) -> String {
        let response = self.ask(method, path, self.at(body).as_bytes());
        assert_eq!(response.status(), 400, "{method} {path} {body}");
        let answer: Value = serde_json::from_slice(response.body()).unwrap();
        let text = answer["fault_message"].as_str().unwrap();
        text.replace(self.folder.root().to_str().unwrap(), "@")
    }

    /// Looks at what there must be.
    pub(crate) fn get(&mut self, path: &str) -> Value {
        let response = self.ask("GET", path, b"");
        assert_eq!(response.status(), 200, "{path}");
        let text =
            String::from_utf8_lossy(response.body()).replace(self.folder.root().to_str().unwrap(), "@");
        serde_json::from_str(&text).unwrap()
    }
}

fn control() -> Control {
    let timeline = Arc::new(Timeline::new(Instant::now(), false));
    Control::new(Box::new(|| Err("there is no console".into())), timeline)
}

/// A 64-bit ELF executable for x86_64 with one segment of one byte, `hlt`, at 1 MiB.
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

/// The specification, references in it not followed.
pub(crate) fn specification() -> Value {
    serde_yaml_ng::from_str(include_str!("../../resources/openapi.yaml")).unwrap()
}

/// `schema`, or what it refers to, as a whole or but for being null.
pub(crate) fn resolve<'a>(specification: &'a Value, schema: &'a Value) -> &'a Value {
    let schema = schema.get("allOf").map_or(schema, |all| &all[0]);
    match schema.get("$ref").and_then(Value::as_str) {
        Some(place) => specification.pointer(place.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    }
}
