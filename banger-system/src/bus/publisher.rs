//! The one task that tells the bus what the engine publishes: it makes and removes objects, and sends
//! signals to those who may see them.

use std::sync::Arc;

use banger_domain::id::JobId;
use banger_proto::bus::names::{JOB_INTERFACE, MANAGER_INTERFACE, MANAGER_PATH, VM_INTERFACE};
use tokio::sync::mpsc;
use zbus::{DynamicType, OwnedObjectPath, names::BusName};

use super::{
    border::Border,
    export::{Kind, changes, export, withdraw},
    image::ImageKind,
    job::{self, JobKind},
    kernel::KernelKind,
    object_manager, path,
    vm::VmKind,
};
use crate::engine::view::{Event, ImageView, JobView, VmView};

const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Publishes until the engine is gone.
pub async fn run(border: Arc<Border>, mut events: mpsc::UnboundedReceiver<Event>) {
    while let Some(event) = events.recv().await {
        if let Err(error) = publish(&border, event).await {
            tracing::error!(%error, "cannot send a signal");
        }
    }
}

async fn publish(border: &Arc<Border>, event: Event) -> zbus::Result<()> {
    match event {
        Event::VmAdded(view) => {
            let to = border.subscribers.of(view.vm.owner, false);
            export(border, VmKind(view.vm.id)).await?;
            added::<VmKind>(border, &to, path::vm(view.vm.id), &view).await?;
            let body = (view.vm.id.to_string(), path::vm(view.vm.id));
            send(border, &to, MANAGER_PATH, MANAGER_INTERFACE, "VMNew", &body).await
        }
        Event::VmChanged { old, new } => vm_changed(border, &old, &new).await,
        Event::VmRemoved(view) => {
            let to = border.subscribers.of(view.vm.owner, false);
            removed(border, &to, VmKind(view.vm.id)).await?;
            let body = (view.vm.id.to_string(), path::vm(view.vm.id));
            send(border, &to, MANAGER_PATH, MANAGER_INTERFACE, "VMRemoved", &body).await
        }
        Event::ImageAdded(image) => {
            let to = border.subscribers.of(image.owner, image.shared);
            export(border, ImageKind(image.id)).await?;
            added::<ImageKind>(border, &to, path::image(image.id), &image).await?;
            let body = (image.id.to_string(), path::image(image.id));
            send(border, &to, MANAGER_PATH, MANAGER_INTERFACE, "ImageNew", &body).await
        }
        Event::ImageChanged { old, new } => image_changed(border, &old, &new).await,
        Event::ImageRemoved(image) => {
            let to = border.subscribers.of(image.owner, image.shared);
            removed(border, &to, ImageKind(image.id)).await?;
            let body = (image.id.to_string(), path::image(image.id));
            send(border, &to, MANAGER_PATH, MANAGER_INTERFACE, "ImageRemoved", &body).await
        }
        Event::KernelAdded(kernel) => {
            let to = border.subscribers.of(kernel.owner, kernel.shared);
            export(border, KernelKind(kernel.id)).await?;
            added::<KernelKind>(border, &to, path::kernel(kernel.id), &kernel).await
        }
        Event::KernelRemoved(kernel) => {
            let to = border.subscribers.of(kernel.owner, kernel.shared);
            removed(border, &to, KernelKind(kernel.id)).await
        }
        Event::JobAdded(view) => {
            let to = border.subscribers.of_job(view.owner, view.id);
            export(border, JobKind(view.id)).await?;
            added::<JobKind>(border, &to, path::job(view.id), &view).await?;
            let body = (view.id.to_string(), path::job(view.id));
            send(border, &to, MANAGER_PATH, MANAGER_INTERFACE, "JobNew", &body).await
        }
        Event::JobChanged { old, new } => job_changed(border, &old, &new).await,
        Event::JobRemoved(view) => {
            let to = border.subscribers.of_job(view.owner, view.id);
            border.subscribers.forget_job(view.id);
            removed(border, &to, JobKind(view.id)).await?;
            let body = (view.id.to_string(), path::job(view.id), job::result(&view).result);
            send(border, &to, MANAGER_PATH, MANAGER_INTERFACE, "JobRemoved", &body).await
        }
    }
}

async fn vm_changed(border: &Arc<Border>, old: &VmView, new: &VmView) -> zbus::Result<()> {
    let (to, path) = (border.subscribers.of(new.vm.owner, false), path::vm(new.vm.id));
    changed::<VmKind>(border, &to, &path, old, new).await?;
    if old.vm.state == new.vm.state {
        return Ok(());
    }
    let body = (old.vm.state.as_str(), new.vm.state.as_str(), new.vm.reason.to_string());
    send(border, &to, path.as_str(), VM_INTERFACE, "StateChanged", &body).await
}

/// To a user who may now see an image it is announced as new, and to one who may no longer see it as removed.
async fn image_changed(border: &Arc<Border>, old: &ImageView, new: &ImageView) -> zbus::Result<()> {
    let path = path::image(new.id);
    let see_both = border.subscribers.of(new.owner, old.shared && new.shared);
    changed::<ImageKind>(border, &see_both, &path, old, new).await?;
    let mut others = border.subscribers.of(new.owner, true);
    others.retain(|connection| !see_both.contains(connection));
    let id = new.id.to_string();
    match (old.shared, new.shared) {
        (false, true) => {
            added::<ImageKind>(border, &others, path.clone(), new).await?;
            send(border, &others, MANAGER_PATH, MANAGER_INTERFACE, "ImageNew", &(id, path)).await
        }
        (true, false) => {
            let body = (path.clone(), vec![ImageKind::INTERFACE]);
            send(border, &others, MANAGER_PATH, OBJECT_MANAGER, "InterfacesRemoved", &body).await?;
            send(border, &others, MANAGER_PATH, MANAGER_INTERFACE, "ImageRemoved", &(id, path)).await
        }
        _ => Ok(()),
    }
}

async fn job_changed(border: &Arc<Border>, old: &JobView, new: &JobView) -> zbus::Result<()> {
    let path = path::job(new.id);
    let has_ended = new.outcome.is_some() && old.outcome.is_none();
    let to = match has_ended {
        true => border.subscribers.of_job_end(new.owner, new.id),
        false => border.subscribers.of_job(new.owner, new.id),
    };
    changed::<JobKind>(border, &to, &path, old, new).await?;
    if new.stage_index != old.stage_index {
        let body = (new.stage, new.stage_index, new.stage_count, new.message.as_str());
        send(border, &to, path.as_str(), JOB_INTERFACE, "Stage", &body).await?;
    }
    match has_ended {
        true => completed(border, &to, new).await,
        false => Ok(()),
    }
}

/// Tells one connection of the end of a job that has ended.
pub async fn tell_end(border: &Border, job: JobId, connection: &str) -> zbus::Result<()> {
    match border.engine.job(job) {
        Some(view) => completed(border, &[connection.to_owned()], &view).await,
        None => Ok(()),
    }
}

async fn completed(border: &Border, to: &[String], job: &JobView) -> zbus::Result<()> {
    let (path, result) = (path::job(job.id), job::result(job));
    let body = (result.result, result.error_name, result.error_message, job::data(job));
    send(border, to, path.as_str(), JOB_INTERFACE, "Completed", &body).await
}

async fn added<K: Kind>(
    border: &Border,
    to: &[String],
    path: OwnedObjectPath,
    view: &K::View,
) -> zbus::Result<()> {
    let body = (path, object_manager::interfaces::<K>(view, &border.engine));
    send(border, to, MANAGER_PATH, OBJECT_MANAGER, "InterfacesAdded", &body).await
}

async fn removed<K: Kind>(border: &Border, to: &[String], kind: K) -> zbus::Result<()> {
    withdraw(border, &kind).await?;
    let body = (kind.path(), vec![K::INTERFACE]);
    send(border, to, MANAGER_PATH, OBJECT_MANAGER, "InterfacesRemoved", &body).await
}

async fn changed<K: Kind>(
    border: &Border,
    to: &[String],
    path: &OwnedObjectPath,
    old: &K::View,
    new: &K::View,
) -> zbus::Result<()> {
    let values = changes::<K>(old, new, &border.engine);
    if values.is_empty() || to.is_empty() {
        return Ok(());
    }
    let body = (K::INTERFACE, values, Vec::<String>::new());
    send(border, to, path.as_str(), PROPERTIES, "PropertiesChanged", &body).await
}

async fn send<B: serde::Serialize + DynamicType>(
    border: &Border,
    to: &[String],
    path: &str,
    interface: &str,
    signal: &str,
    body: &B,
) -> zbus::Result<()> {
    for connection in to {
        let destination = BusName::try_from(connection.as_str())?;
        border.connection.emit_signal(Some(destination), path, interface, signal, body).await?;
    }
    Ok(())
}
