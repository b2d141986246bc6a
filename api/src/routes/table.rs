//! The table.

use super::{Error, RequestContext, boot, drive, life, network, output, show, snapshot};
use crate::http::{Method, Response};
use crate::schema::{
    Action, BootSource, Drive, DriveUpdate, Logger, MachineConfiguration, MachineConfigurationUpdate,
    Metrics, NetworkInterface, NetworkInterfaceUpdate, Schema, Serial, SnapshotCreate, SnapshotLoad,
    VmUpdate, Vsock,
};

/// What is done by one method with one path.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, as `resources/openapi.yaml` has it: the last part may be a name in braces.
    pub path: &'static str,
    /// What the specification calls the body; none for a route without one.
    pub body: Option<&'static str>,
    pub(super) handle: RouteHandler,
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
            handle,
        }
    }

    /// Whether `path`, without the slash that it starts with, is meant, and the name in it. A name may be empty.
    pub(super) fn matches<'a>(&self, path: &'a str) -> Option<Option<&'a str>> {
        let own = &self.path[1..];
        let Some((folder, _)) = own.split_once("/{") else {
            return (path == own).then_some(None);
        };
        let rest = path.strip_prefix(folder)?;
        let id = rest.strip_prefix('/');
        match id {
            None => rest.is_empty().then_some(Some("")),
            Some(id) => (!id.contains('/')).then_some(Some(id)),
        }
    }
}

/// All that can be asked for.
pub static ROUTES: [Route; 23] = [
    Route::get("/", show::instance),
    Route::get("/version", show::version),
    Route::get("/vm/config", show::configuration),
    Route::get("/metrics", show::metrics),
    Route::get("/openapi.yaml", show::specification),
    Route::get("/machine-config", show::machine),
    Route::put::<MachineConfiguration>("/machine-config", boot::put_machine),
    Route::patch::<MachineConfigurationUpdate>("/machine-config", boot::patch_machine),
    Route::put::<BootSource>("/boot-source", boot::put_boot_source),
    Route::put::<Drive>("/drives/{drive_id}", drive::put_drive),
    Route::patch::<DriveUpdate>("/drives/{drive_id}", drive::patch_drive),
    Route::delete("/drives/{drive_id}", drive::delete_drive),
    Route::put::<NetworkInterface>("/network-interfaces/{iface_id}", network::put_interface),
    Route::patch::<NetworkInterfaceUpdate>("/network-interfaces/{iface_id}", network::patch_interface),
    Route::delete("/network-interfaces/{iface_id}", network::delete_interface),
    Route::put::<Vsock>("/vsock", network::put_vsock),
    Route::put::<Logger>("/logger", output::put_logger),
    Route::put::<Metrics>("/metrics", output::put_metrics),
    Route::put::<Serial>("/serial", output::put_serial),
    Route::put::<Action>("/actions", life::put_action),
    Route::patch::<VmUpdate>("/vm", life::patch_vm),
    Route::put::<SnapshotCreate>("/snapshot/create", snapshot::create),
    Route::put::<SnapshotLoad>("/snapshot/load", snapshot::load),
];
