//! Routes: handler of each method and path.

mod actions;
mod context;
mod debugger;
mod drive;
mod error;
mod info;
mod logging;
mod machine;
mod network;
mod scale_to_zero;
mod snapshot;
#[cfg(test)]
mod tests;
mod unsupported;

use std::time::Instant;

use vmm::control::{Control, OperationResult, Progress};

use crate::http::{Method, Reply, Request, Response};
use crate::process::{PendingRequest, Process, RequestRecord, TimedOperation};
use crate::request_log;
use crate::schema::{
    Action, BootSource, Debugger, Drive, DriveUpdate, Logger, MachineConfiguration,
    MachineConfigurationUpdate, Metrics, NetworkInterface, NetworkInterfaceUpdate, ScaleToZero,
    ScaleToZeroAction, Schema, Serial, SnapshotCreate, SnapshotLoad, VmUpdate, Vsock,
};

pub use context::RequestContext;
use context::{Begun, no_content};
pub use debugger::take_over;
pub use error::Error;

pub(crate) use unsupported::check_key;

/// Method and path with its handler.
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path as in `resources/openapi.yaml`; the last segment may be an identifier in braces.
    pub path: &'static str,
    /// Name of the body type in the specification. `None` for a route without a body.
    pub body: Option<&'static str>,
    /// The body is also a section of the configuration file.
    is_section: bool,
    handler: RouteHandler,
}

/// Handler of a route.
#[derive(Clone, Copy)]
enum RouteHandler {
    /// Returns the response.
    Immediate(Handle),
    /// Begins an operation of the VM, which has a response without content.
    Operation(Begin),
}

type Handle = fn(&mut RequestContext<'_>) -> Result<Response, Error>;
type Begin = fn(&mut RequestContext<'_>) -> Result<Begun, Error>;

/// Result of a handler.
pub enum Handled {
    /// Response.
    Response(Response),
    /// An operation runs; [`finish`] returns the response.
    Pending {
        /// Subject of an error of the VM.
        part: &'static str,
        /// The body has a deprecated key.
        is_deprecated: bool,
    },
}

impl Route {
    const fn get(path: &'static str, handle: Handle) -> Self {
        Self::new(Method::Get, path, None, RouteHandler::Immediate(handle))
    }

    const fn delete(path: &'static str, handle: Handle) -> Self {
        Self::new(Method::Delete, path, None, RouteHandler::Immediate(handle))
    }

    const fn put<T: Schema>(path: &'static str, handle: Handle) -> Self {
        Self::new(Method::Put, path, Some(T::NAME), RouteHandler::Immediate(handle))
    }

    const fn patch<T: Schema>(path: &'static str, handle: Handle) -> Self {
        Self::new(
            Method::Patch,
            path,
            Some(T::NAME),
            RouteHandler::Immediate(handle),
        )
    }

    const fn operation<T: Schema>(method: Method, path: &'static str, begin: Begin) -> Self {
        Self::new(method, path, Some(T::NAME), RouteHandler::Operation(begin))
    }

    const fn new(
        method: Method,
        path: &'static str,
        body: Option<&'static str>,
        handler: RouteHandler,
    ) -> Self {
        Self {
            method,
            path,
            body,
            is_section: false,
            handler,
        }
    }

    /// Makes the body a section of the configuration file.
    const fn in_file(mut self) -> Self {
        self.is_section = true;
        self
    }

    /// Returns the key of the section: the first segment of the path.
    pub fn key(&self) -> &'static str {
        self.path[1..].split('/').next().unwrap_or_default()
    }

    /// Returns true if the section is a list of bodies: the path ends with an identifier.
    pub fn is_list(&self) -> bool {
        self.path.ends_with('}')
    }

    /// Handles the body of `context`.
    ///
    /// # Errors
    /// [`Error`]
    pub fn handle(&self, context: &mut RequestContext<'_>) -> Result<Handled, Error> {
        match self.handler {
            RouteHandler::Immediate(handle) => handle(context).map(Handled::Response),
            RouteHandler::Operation(begin) => {
                let begun = begin(context)?;
                let (part, is_deprecated) = (begun.part, begun.is_deprecated);
                Ok(match begun.progress {
                    Progress::Done => Handled::Response(no_content(is_deprecated)),
                    Progress::Pending => Handled::Pending { part, is_deprecated },
                })
            }
        }
    }

    /// Compares `path`, without the first slash, with the route. Returns the identifier in it, which may be empty.
    fn matches<'a>(&self, path: &'a str) -> Option<Option<&'a str>> {
        let own = &self.path[1..];
        let Some((directory, _)) = own.split_once("/{") else {
            return (path == own).then_some(None);
        };
        let rest = path.strip_prefix(directory)?;
        let id = rest.strip_prefix('/');
        match id {
            None => rest.is_empty().then_some(Some("")),
            Some(id) => (!id.contains('/')).then_some(Some(id)),
        }
    }
}

/// All routes. Those in the configuration file are in the order in which its sections are applied.
pub static ROUTES: [Route; 29] = [
    Route::get("/", info::instance),
    Route::get("/version", info::version),
    Route::get("/vm/config", info::configuration),
    Route::get("/vm/status", info::status),
    Route::get("/vm/registers", info::registers),
    Route::put::<Debugger>(debugger::PATH, debugger::put),
    Route::get("/metrics", info::metrics),
    Route::get("/openapi.yaml", info::specification),
    Route::get("/machine-config", info::machine),
    Route::put::<Logger>("/logger", logging::put_logger).in_file(),
    Route::put::<Metrics>("/metrics", logging::put_metrics).in_file(),
    Route::put::<MachineConfiguration>("/machine-config", machine::put_machine).in_file(),
    Route::patch::<MachineConfigurationUpdate>("/machine-config", machine::patch_machine),
    Route::put::<BootSource>("/boot-source", machine::put_boot_source).in_file(),
    Route::put::<Drive>("/drives/{drive_id}", drive::put_drive).in_file(),
    Route::operation::<DriveUpdate>(Method::Patch, "/drives/{drive_id}", drive::patch_drive),
    Route::delete("/drives/{drive_id}", drive::delete_drive),
    Route::put::<NetworkInterface>("/network-interfaces/{iface_id}", network::put_interface).in_file(),
    Route::operation::<NetworkInterfaceUpdate>(
        Method::Patch,
        "/network-interfaces/{iface_id}",
        network::patch_interface,
    ),
    Route::delete("/network-interfaces/{iface_id}", network::delete_interface),
    Route::put::<Vsock>("/vsock", network::put_vsock).in_file(),
    Route::put::<Serial>("/serial", logging::put_serial).in_file(),
    Route::get(scale_to_zero::PATH, scale_to_zero::get),
    Route::put::<ScaleToZero>(scale_to_zero::PATH, scale_to_zero::put).in_file(),
    Route::operation::<ScaleToZeroAction>(Method::Patch, scale_to_zero::PATH, scale_to_zero::patch),
    Route::put::<Action>("/actions", actions::put_action),
    Route::operation::<VmUpdate>(Method::Patch, "/vm", actions::patch_vm),
    Route::operation::<SnapshotCreate>(Method::Put, "/snapshot/create", snapshot::create),
    Route::operation::<SnapshotLoad>(Method::Put, "/snapshot/load", snapshot::load),
];

/// Returns the routes whose bodies are sections of the configuration file, in the order of their application.
pub fn sections() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.is_section)
}

/// Sentence for a request after a failed load.
const LOAD_FAILED: &str =
    "The snapshot was not loaded, and mayfly ends; start mayfly again, and correct the load first.";

/// Sentence for a request after a suspend.
const SUSPENDED: &str = "The VM is suspended, and mayfly ends; load its snapshot first.";

/// Executes `request`. While an operation runs, only requests that read, or cancel a suspend, are executed. After a suspend or a failed
/// load of a snapshot, no other is: the process ends.
pub fn execute(request: &Request, control: &mut Control, process: &mut Process) -> Reply {
    if control.is_busy() && request.method != Method::Get {
        let is_cancel = control.is_suspending() && scale_to_zero::is_cancel(request);
        if !is_cancel {
            return Reply::Busy;
        }
    }
    request_log::log_request(request);
    let mut record = RequestRecord {
        method: request.method.clone(),
        path: request.path.clone(),
        start: Instant::now(),
        operation: None,
    };
    let handled = if control.has_failed() && request.method != Method::Get {
        Err(Error::Phase(LOAD_FAILED))
    } else if control.is_suspended() && request.method != Method::Get {
        Err(Error::Phase(SUSPENDED))
    } else {
        dispatch(request, control, process, &mut record.operation)
    };
    let response = match handled {
        Ok(Handled::Response(response)) => response,
        Ok(Handled::Pending { part, is_deprecated }) => {
            process.set_pending(PendingRequest {
                record,
                part,
                is_deprecated,
            });
            return Reply::Pending;
        }
        Err(error) => reject(&error),
    };
    process.record(control, &record, &response);
    Reply::Response(response)
}

/// Returns the response to the pending request, whose operation has ended with `result`.
pub fn finish(result: OperationResult, control: &Control, process: &mut Process) -> Option<Response> {
    let request = process.take_pending()?;
    let response = match result {
        Ok(()) => no_content(request.is_deprecated),
        Err(error) => {
            let error = Error::of_operation(request.part, error);
            reject(&Error::mark(request.is_deprecated)(error))
        }
    };
    process.record(control, &request.record, &response);
    Some(response)
}

fn reject(error: &Error) -> Response {
    request_log::log_fault(&error.to_string());
    error.response()
}

/// Handles `request`. Sets `operation` if its duration is recorded.
fn dispatch(
    request: &Request,
    control: &mut Control,
    process: &mut Process,
    operation: &mut Option<TimedOperation>,
) -> Result<Handled, Error> {
    let method = &request.method;
    // Firecracker takes a target without a slash, such as `vm`, for an empty path.
    let path = request.path.strip_prefix('/').unwrap_or_default();
    if let Some(error) = unsupported::check_path(method, path) {
        return Err(error);
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
        let mut context = RequestContext {
            control,
            process,
            id,
            body: &request.body,
            upgrade: request.upgrade.as_deref(),
            operation: None,
        };
        let handled = route.handle(&mut context);
        *operation = context.operation;
        return handled;
    }
    let (method, path) = (method.clone(), path.to_owned());
    Err(Error::Route { method, path })
}
