//! The border: D-Bus. Who calls comes from the bus, never from an argument. Every call is authorised by one
//! table before anything is done, and everything that leaves goes to those who may see it and to nobody
//! else.

mod acl;
mod border;
mod caller;
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
mod subscribers;
mod vm;

use std::sync::Arc;

use banger_proto::bus::names;
use tokio::sync::mpsc;
use zbus::Connection;

use self::border::Border;
pub use self::introspect::interfaces;
use crate::engine::{Engine, view::Event};

/// Serves the engine on this connection. When this returns, the name is owned and calls are answered;
/// what serves them lives as long as the connection.
pub async fn serve(
    connection: Connection,
    engine: Engine,
    events: mpsc::UnboundedReceiver<Event>,
) -> zbus::Result<()> {
    let border = Arc::new(Border::new(connection.clone(), engine).await?);
    manager::export(&border).await?;
    object_manager::export(&border).await?;
    tokio::spawn(publisher::run(Arc::clone(&border), events));
    tokio::spawn(caller::watch_names(Arc::clone(&border)).await?);
    caller::end_orphans(&border).await?;
    connection.request_name(names::SERVICE).await
}
