//! What each method and path does.

mod absent;
mod boot;
mod drive;
mod error;
mod life;
mod network;
mod output;
mod show;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;

use serde::Serialize;
use vmm::control::{self, Control, InstanceState};

use crate::http::{Method, Request, Response};
use crate::schema::{self, Schema};
use crate::service::Process;

pub use error::Error;
pub use table::{ROUTES, Route};

pub(crate) use absent::check_key;
pub(crate) use boot::{put_boot_source, put_machine};
pub(crate) use drive::put_drive;
pub(crate) use network::{put_interface, put_vsock};
pub(crate) use output::{put_logger, put_metrics};

/// A request on its way.
pub struct RequestContext<'a> {
    /// The VM.
    pub control: &'a mut Control,
    /// The process around it.
    pub process: &'a mut Process,
    /// The name in the path; none where there is no path.
    pub id: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

impl RequestContext<'_> {
    /// The body, read.
    fn read<T: Schema>(&self) -> Result<T, Error> {
        schema::read(self.body).map_err(Error::Schema)
    }

    /// Refuses what must be done before the start, after it.
    fn before_start(&self) -> Result<(), Error> {
        match self.control.state() {
            InstanceState::NotStarted => Ok(()),
            InstanceState::Running | InstanceState::Paused => Err(Error::Phase(control::Error::AfterStart)),
        }
    }

    /// Refuses what must be done after the start, before it.
    fn after_start(&self) -> Result<(), Error> {
        match self.control.state() {
            InstanceState::NotStarted => Err(Error::Phase(control::Error::BeforeStart)),
            InstanceState::Running | InstanceState::Paused => Ok(()),
        }
    }

    /// Checks the name that a thing has in the body.
    fn check_id(&self, id: &str) -> Result<(), Error> {
        if id.is_empty() {
            return Err(Error::IdEmpty);
        }
        if self.id.is_some_and(|expected| expected != id) {
            return Err(Error::IdMismatch);
        }
        // Firecracker refuses hyphens, but kraftkit gives an interface the name of its bridge.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
        id.bytes().all(plain).then_some(()).ok_or(Error::IdCharacter)
    }
}

/// Does what `request` wants, and says so.
pub fn answer(request: &Request, control: &mut Control, process: &mut Process) -> Response {
    let response = respond(request, control, process).unwrap_or_else(|error| {
        let text = error.to_string();
        log::info!("api: refused {} {}: {text}", request.method, request.path);
        Response::fault(&text)
    });
    process.count(response.status());
    response
}

fn respond(request: &Request, control: &mut Control, process: &mut Process) -> Result<Response, Error> {
    let method = &request.method;
    let path = request.path.strip_prefix('/').unwrap_or(&request.path);
    if let Some(why) = absent::check_path(method, path) {
        return Err(why);
    }
    match method {
        Method::Get | Method::Delete if !request.body.is_empty() => {
            return Err(Error::Body(method.clone()));
        }
        Method::Put | Method::Patch if request.body.is_empty() => return Err(Error::Empty(method.clone())),
        _ => {}
    }
    for route in &ROUTES {
        if route.method != *method {
            continue;
        }
        let Some(id) = route.matches(path) else {
            continue;
        };
        if id == Some("") {
            return Err(Error::IdEmpty);
        }
        let body = &request.body;
        return (route.handle)(&mut RequestContext {
            control,
            process,
            id,
            body,
        });
    }
    let (method, path) = (method.clone(), path.to_owned());
    Err(Error::Route { method, path })
}

/// 200 with `content`.
fn json(content: &impl Serialize) -> Result<Response, Error> {
    let body = serde_json::to_vec(content)
        .map_err(|error| Error::refused("Internal VMM", format!("cannot write the answer: {error}")))?;
    Ok(Response::json(200, body))
}
