//! The D-Bus API. The bus says who calls, never an argument. Every call is authorised by one
//! table before anything is done, and replies and signals go only to those who may see
//! them.

mod acl;
mod border;
mod caller;
mod catalog;
mod error;
mod export;
mod image;
mod introspect;
mod job;
mod kernel;
mod manager;
mod object_manager;
mod options;
mod path;
mod publisher;
mod reference;
mod request;
mod subscribers;
mod vm;

use std::sync::Arc;

use banger_proto::bus::names;
use tokio::sync::mpsc;
use zbus::{Connection, fdo::RequestNameFlags};

pub use self::introspect::interfaces;
use self::{
    border::Border, export::export, image::ImageKind, job::JobKind, kernel::KernelKind, manager::ManagerKind,
    vm::VmKind,
};
use crate::engine::{Engine, view::Event};

/// Serves the engine on this connection. When this returns, the name is owned and calls are answered;
/// what serves them lives as long as the connection.
pub async fn serve(
    connection: Connection,
    engine: Engine,
    events: mpsc::UnboundedReceiver<Event>,
) -> zbus::Result<()> {
    let border = Arc::new(Border::new(connection.clone(), engine).await?);
    export(&border, ManagerKind).await?;
    object_manager::export(&border).await?;
    // What was there before is on the bus before anybody can call. What comes is the publisher's.
    for view in border.engine.kernels() {
        export(&border, KernelKind(view.id)).await?;
    }
    for view in border.engine.images() {
        export(&border, ImageKind(view.id)).await?;
    }
    for view in border.engine.vms() {
        export(&border, VmKind(view.vm.id)).await?;
    }
    for view in border.engine.jobs() {
        export(&border, JobKind(view.id)).await?;
    }
    tokio::spawn(publisher::run(Arc::clone(&border), events));
    tokio::spawn(caller::watch_names(Arc::clone(&border)).await?);
    caller::end_orphans(&border).await?;
    // Nobody else may take the name from us, nor we from another that serves.
    let flags = RequestNameFlags::DO_NOT_QUEUE;
    connection.request_name_with_flags(names::SERVICE, flags).await.map(drop)
}
