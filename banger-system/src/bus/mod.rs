//! The D-Bus API: `dev.banger.Manager1` on the system bus.
//!
//! This is the boundary between unprivileged users and a root service. Every call takes the same path:
//!
//! ```text
//!    message ──► caller.rs     who sent it? (the bus says so, never an argument)
//!                   │
//!                   ▼
//!               api.rs admit   how many calls does this user have under way?      TooManyRequests
//!                   │           what does the table in acl.rs ask of the caller?   AccessDenied,
//!                   ▼           (nothing, to own the object, a polkit action)       InteractiveAuthorizationRequired
//!               vm.rs, image.rs, kernel.rs, job.rs, manager.rs
//!                   │           parse the arguments: options.rs, request/           InvalidOption, InvalidName
//!                   ▼
//!               engine          do it, or start a job and return its path
//!
//!    engine ──► events ──► publisher.rs ──► signals, to the subscribers who may see the object
//! ```
//!
//! Three rules keep it safe.
//!
//! - **One check.** `export.rs` wraps every object: it authorises a call before the method's code runs, and looks the
//!   object up again after a password dialog. A member that is not in the table is denied, and a test compares the table
//!   with the interfaces.
//! - **Other users' objects do not exist.** References are looked up among what the caller may see (`reference.rs`), and
//!   the answer for a hidden object is the answer for a missing one. Signals are unicast, because everybody can read a
//!   broadcast on the system bus.
//! - **Nothing holds zbus's tree of objects for long.** zbus holds it while a property is read. So a read uses the
//!   engine's last snapshot, and waits at most a second for polkit.
//!
//! Properties are a table for each kind of object. `Get`, `GetAll`, `PropertiesChanged`, the ObjectManager and the
//! introspection all come from it, so they cannot differ.

mod acl;
mod api;
mod caller;
mod catalog;
mod error;
mod export;
mod image;
mod introspect;
mod item;
mod job;
mod kernel;
mod log_control;
mod manager;
mod metrics;
mod object_manager;
mod options;
mod path;
mod published;
mod publisher;
mod reference;
mod request;
mod subscribers;
mod vm;

use std::sync::Arc;

use banger_proto::bus::names;
use zbus::{Connection, fdo::RequestNameFlags};

pub use self::introspect::interfaces;
use self::{
    api::Api, export::export, image::ImageKind, job::JobKind, kernel::KernelKind, manager::ManagerKind,
    vm::VmKind,
};
use crate::{
    engine::{Engine, Events},
    log::Log,
    tasks::{Task, Tasks},
};

/// Serves the engine on this connection. When this returns, the service owns its name and answers calls. The tasks
/// that serve it live as long as the connection.
pub async fn serve(
    connection: Connection,
    engine: Engine,
    events: Events,
    log: Log,
    tasks: &Tasks,
) -> zbus::Result<()> {
    let api = Arc::new(Api::new(connection.clone(), engine).await?);
    export(&api, ManagerKind).await?;
    object_manager::export(&api).await?;
    log_control::export(&api, log).await?;
    // Objects of an earlier run are exported before anybody can call. The publisher exports later ones.
    for view in api.engine.kernels() {
        export(&api, KernelKind(view.id)).await?;
    }
    for view in api.engine.images() {
        export(&api, ImageKind(view.id)).await?;
    }
    for view in api.engine.vms() {
        export(&api, VmKind(view.vm.id)).await?;
    }
    for view in api.engine.jobs() {
        export(&api, JobKind(view.id)).await?;
    }
    tasks.spawn(Task::Publisher, publisher::run(Arc::clone(&api), events));
    tasks.spawn(Task::Connections, caller::watch_connections(Arc::clone(&api)).await?);
    caller::end_vms_of_gone_callers(&api).await?;
    // Neither may another process take the name from this one, nor the reverse.
    let flags = RequestNameFlags::DO_NOT_QUEUE;
    connection.request_name_with_flags(names::SERVICE, flags).await.map(drop)
}
