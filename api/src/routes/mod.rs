//! Routes: handler of each method and path.

mod actions;
mod context;
mod drive;
mod error;
mod info;
mod logging;
mod machine;
mod network;
mod snapshot;
#[cfg(test)]
mod tests;
mod unsupported;

use vmm::control::Control;

use crate::http::{Method, Request, Response};
use crate::process::Process;
use crate::schema::{
    Action, BootSource, Drive, DriveUpdate, Logger, MachineConfiguration, MachineConfigurationUpdate,
    Metrics, NetworkInterface, NetworkInterfaceUpdate, Schema, Serial, SnapshotCreate, SnapshotLoad,
    VmUpdate, Vsock,
};

pub use context::RequestContext;
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
    handle: RouteHandler,
}

type RouteHandler = fn(&mut RequestContext<'_>) -> Result<Response, Error>;

impl Route {
    const fn get(path: &'static str, handle: RouteHandler) -> Self {
        Self::new(Method::Get, path, None, handle)
    }

    const fn delete(path: &'static str, handle: RouteHandler) -> Self {
        Self::new(Method::Delete, path, None, handle)
    }

    const fn put<T: Schema>(path: &'static str, handle: RouteHandler) -> Self {
        Self::new(Method::Put, path, Some(T::NAME), handle)
    }

    const fn patch<T: Schema>(path: &'static str, handle: RouteHandler) -> Self {
        Self::new(Method::Patch, path, Some(T::NAME), handle)
    }

    const fn new(
        method: Method,
        path: &'static str,
        body: Option<&'static str>,
        handle: RouteHandler,
    ) -> Self {
        Self {
            method,
            path,
            body,
            is_section: false,
            handle,
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
    pub fn handle(&self, context: &mut RequestContext<'_>) -> Result<Response, Error> {
        (self.handle)(context)
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
pub static ROUTES: [Route; 23] = [
    Route::get("/", info::instance),
    Route::get("/version", info::version),
    Route::get("/vm/config", info::configuration),
    Route::get("/metrics", info::metrics),
    Route::get("/openapi.yaml", info::specification),
    Route::get("/machine-config", info::machine),
    Route::put::<Logger>("/logger", logging::put_logger).in_file(),
    Route::put::<Metrics>("/metrics", logging::put_metrics).in_file(),
    Route::put::<MachineConfiguration>("/machine-config", machine::put_machine).in_file(),
    Route::patch::<MachineConfigurationUpdate>("/machine-config", machine::patch_machine),
    Route::put::<BootSource>("/boot-source", machine::put_boot_source).in_file(),
    Route::put::<Drive>("/drives/{drive_id}", drive::put_drive).in_file(),
    Route::patch::<DriveUpdate>("/drives/{drive_id}", drive::patch_drive),
    Route::delete("/drives/{drive_id}", drive::delete_drive),
    Route::put::<NetworkInterface>("/network-interfaces/{iface_id}", network::put_interface).in_file(),
    Route::patch::<NetworkInterfaceUpdate>("/network-interfaces/{iface_id}", network::patch_interface),
    Route::delete("/network-interfaces/{iface_id}", network::delete_interface),
    Route::put::<Vsock>("/vsock", network::put_vsock).in_file(),
    Route::put::<Serial>("/serial", logging::put_serial),
    Route::put::<Action>("/actions", actions::put_action),
    Route::patch::<VmUpdate>("/vm", actions::patch_vm),
    Route::put::<SnapshotCreate>("/snapshot/create", snapshot::create),
    Route::put::<SnapshotLoad>("/snapshot/load", snapshot::load),
];

/// Returns the routes whose bodies are sections of the configuration file, in the order of their application.
pub fn sections() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.is_section)
}

/// Executes `request` and returns the response.
pub fn execute(request: &Request, control: &mut Control, process: &mut Process) -> Response {
    let response = dispatch(request, control, process).unwrap_or_else(|error| {
        let text = error.to_string();
        log::info!("api: rejected {} {}: {text}", request.method, request.path);
        Response::fault(&text)
    });
    process.count(response.status());
    response
}

fn dispatch(request: &Request, control: &mut Control, process: &mut Process) -> Result<Response, Error> {
    let method = &request.method;
    let path = request.path.strip_prefix('/').unwrap_or(&request.path);
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
