//! The task that publishes the engine's events on the bus: it exports and removes objects, and sends signals to those
//! who may see them.

use std::sync::Arc;

use banger_domain::id::JobId;
use banger_proto::bus::names::{JOB_INTERFACE, MANAGER_INTERFACE, MANAGER_PATH, VM_INTERFACE};
use zbus::{DynamicType, OwnedObjectPath, names::BusName};

use super::{
    api::Api,
    export::{Kind, Reader, changes, export, unexport, unexport_gone},
    image::ImageKind,
    job::{self, JobKind},
    kernel::KernelKind,
    object_manager, path,
    published::Published,
    vm::VmKind,
};
use crate::engine::{
    Events,
    view::{Event, ImageView, JobView, VmView},
};

const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Publishes events until the engine is dropped.
pub async fn run(api: Arc<Api>, mut events: Events) {
    let mut published = Published::default();
    while let Some(event) = events.recv().await {
        let is_gap = matches!(event, Event::Lost);
        for event in published.follow(event, &api.engine) {
            if let Err(error) = publish(&api, event).await {
                tracing::error!(%error, "cannot send a signal");
            }
        }
        if is_gap && let Err(error) = end_unseen(&api, &published).await {
            tracing::error!(%error, "cannot remove objects from the bus");
        }
    }
}

/// Removes the objects that began and ended in a gap: calls have exported them, and no event is left of them. The
/// result of such a job is unknown.
async fn end_unseen(api: &Api, published: &Published) -> zbus::Result<()> {
    unexport_gone(api).await?;
    let is_known = |job| published.has_job(job) || api.engine.job(job).is_some();
    for (job, creator) in api.subscribers.retain_jobs(is_known) {
        let (to, path) = ([creator], path::job(job));
        let body = (path.clone(), vec![JobKind::INTERFACE]);
        send(api, &to, MANAGER_PATH, OBJECT_MANAGER, "InterfacesRemoved", &body).await?;
        send(api, &to, MANAGER_PATH, MANAGER_INTERFACE, "JobRemoved", &(job.to_string(), path, "")).await?;
    }
    Ok(())
}

async fn publish(api: &Arc<Api>, event: Event) -> zbus::Result<()> {
    match event {
        Event::VmAdded(view) => {
            let to = api.subscribers.recipients(view.vm.owner, false);
            export(api, VmKind(view.vm.id)).await?;
            added::<VmKind>(api, &to, path::vm(view.vm.id), &view).await?;
            let body = (view.vm.id.to_string(), path::vm(view.vm.id));
            send(api, &to, MANAGER_PATH, MANAGER_INTERFACE, "VMNew", &body).await
        }
        Event::VmChanged { old, new } => vm_changed(api, &old, &new).await,
        Event::VmRemoved(view) => {
            let to = api.subscribers.recipients(view.vm.owner, false);
            removed(api, &to, VmKind(view.vm.id)).await?;
            let body = (view.vm.id.to_string(), path::vm(view.vm.id));
            send(api, &to, MANAGER_PATH, MANAGER_INTERFACE, "VMRemoved", &body).await
        }
        Event::EgressDenied { view, destination } => {
            let (to, path) = (api.subscribers.recipients(view.vm.owner, false), path::vm(view.vm.id));
            let body = (destination.host(), destination.port(), destination.protocol());
            send(api, &to, path.as_str(), VM_INTERFACE, "EgressDenied", &body).await
        }
        Event::ImageAdded(image) => {
            let to = api.subscribers.recipients(image.owner, image.shared);
            export(api, ImageKind(image.id)).await?;
            added::<ImageKind>(api, &to, path::image(image.id), &image).await?;
            let body = (image.id.to_string(), path::image(image.id));
            send(api, &to, MANAGER_PATH, MANAGER_INTERFACE, "ImageNew", &body).await
        }
        Event::ImageChanged { old, new } => image_changed(api, &old, &new).await,
        Event::ImageRemoved(image) => {
            let to = api.subscribers.recipients(image.owner, image.shared);
            removed(api, &to, ImageKind(image.id)).await?;
            let body = (image.id.to_string(), path::image(image.id));
            send(api, &to, MANAGER_PATH, MANAGER_INTERFACE, "ImageRemoved", &body).await
        }
        Event::KernelAdded(kernel) => {
            let to = api.subscribers.recipients(kernel.owner, kernel.shared);
            export(api, KernelKind(kernel.id)).await?;
            added::<KernelKind>(api, &to, path::kernel(kernel.id), &kernel).await
        }
        Event::KernelChanged { old, new } => {
            let to = api.subscribers.recipients(new.owner, new.shared);
            changed::<KernelKind>(api, &to, &path::kernel(new.id), &old, &new).await
        }
        Event::KernelRemoved(kernel) => {
            let to = api.subscribers.recipients(kernel.owner, kernel.shared);
            removed(api, &to, KernelKind(kernel.id)).await
        }
        Event::JobAdded(view) => {
            let to = api.subscribers.job_recipients(view.owner, view.id);
            export(api, JobKind(view.id)).await?;
            added::<JobKind>(api, &to, path::job(view.id), &view).await?;
            let body = (view.id.to_string(), path::job(view.id));
            send(api, &to, MANAGER_PATH, MANAGER_INTERFACE, "JobNew", &body).await
        }
        Event::JobChanged { old, new } => job_changed(api, &old, &new).await,
        Event::JobRemoved(view) => {
            let to = api.subscribers.job_recipients(view.owner, view.id);
            api.subscribers.forget_job(view.id);
            removed(api, &to, JobKind(view.id)).await?;
            let body = (view.id.to_string(), path::job(view.id), job::result(&view).result);
            send(api, &to, MANAGER_PATH, MANAGER_INTERFACE, "JobRemoved", &body).await
        }
        // `Published` has put other events in its place.
        Event::Lost => Ok(()),
    }
}

async fn vm_changed(api: &Arc<Api>, old: &VmView, new: &VmView) -> zbus::Result<()> {
    let (to, path) = (api.subscribers.recipients(new.vm.owner, false), path::vm(new.vm.id));
    changed::<VmKind>(api, &to, &path, old, new).await?;
    if old.vm.state == new.vm.state {
        return Ok(());
    }
    let body = (old.vm.state.as_str(), new.vm.state.as_str(), new.vm.reason.to_string());
    send(api, &to, path.as_str(), VM_INTERFACE, "StateChanged", &body).await
}

/// Announces an image as new to users who may now see it, and as removed to users who no longer may.
async fn image_changed(api: &Arc<Api>, old: &ImageView, new: &ImageView) -> zbus::Result<()> {
    let path = path::image(new.id);
    let see_both = api.subscribers.recipients(new.owner, old.shared && new.shared);
    changed::<ImageKind>(api, &see_both, &path, old, new).await?;
    let mut others = api.subscribers.recipients(new.owner, true);
    others.retain(|connection| !see_both.contains(connection));
    let id = new.id.to_string();
    match (old.shared, new.shared) {
        (false, true) => {
            added::<ImageKind>(api, &others, path.clone(), new).await?;
            send(api, &others, MANAGER_PATH, MANAGER_INTERFACE, "ImageNew", &(id, path)).await
        }
        (true, false) => {
            let body = (path.clone(), vec![ImageKind::INTERFACE]);
            send(api, &others, MANAGER_PATH, OBJECT_MANAGER, "InterfacesRemoved", &body).await?;
            send(api, &others, MANAGER_PATH, MANAGER_INTERFACE, "ImageRemoved", &(id, path)).await
        }
        _ => Ok(()),
    }
}

async fn job_changed(api: &Arc<Api>, old: &JobView, new: &JobView) -> zbus::Result<()> {
    let path = path::job(new.id);
    let has_ended = new.outcome.is_some() && old.outcome.is_none();
    let to = match has_ended {
        true => api.subscribers.end_job(new.owner, new.id),
        false => api.subscribers.job_recipients(new.owner, new.id),
    };
    changed::<JobKind>(api, &to, &path, old, new).await?;
    if new.stage_index != old.stage_index {
        let body = (new.stage, new.stage_index, new.stage_count, new.message.as_str());
        send(api, &to, path.as_str(), JOB_INTERFACE, "Stage", &body).await?;
    }
    match has_ended {
        true => completed(api, &to, new).await,
        false => Ok(()),
    }
}

/// Sends `Completed` for an ended job to one connection.
pub async fn send_completed(api: &Api, job: JobId, connection: &str) -> zbus::Result<()> {
    match api.engine.job(job) {
        Some(view) => completed(api, &[connection.to_owned()], &view).await,
        None => Ok(()),
    }
}

async fn completed(api: &Api, to: &[String], job: &JobView) -> zbus::Result<()> {
    let (path, result) = (path::job(job.id), job::result(job));
    let body = (result.result, result.error_name, result.error_message, job::data(job));
    send(api, to, path.as_str(), JOB_INTERFACE, "Completed", &body).await
}

async fn added<K: Kind>(api: &Api, to: &[String], path: OwnedObjectPath, view: &K::View) -> zbus::Result<()> {
    if to.is_empty() {
        return Ok(());
    }
    let reader = Reader { engine: &api.engine, uid: None };
    let body = (path, object_manager::interfaces::<K>(view, &reader));
    send(api, to, MANAGER_PATH, OBJECT_MANAGER, "InterfacesAdded", &body).await
}

async fn removed<K: Kind>(api: &Api, to: &[String], kind: K) -> zbus::Result<()> {
    unexport(api, &kind).await?;
    let body = (kind.path(), vec![K::INTERFACE]);
    send(api, to, MANAGER_PATH, OBJECT_MANAGER, "InterfacesRemoved", &body).await
}

async fn changed<K: Kind>(
    api: &Api,
    to: &[String],
    path: &OwnedObjectPath,
    old: &K::View,
    new: &K::View,
) -> zbus::Result<()> {
    if to.is_empty() {
        return Ok(());
    }
    let values = changes::<K>(old, new, &api.engine);
    if values.is_empty() {
        return Ok(());
    }
    let body = (K::INTERFACE, values, Vec::<String>::new());
    send(api, to, path.as_str(), PROPERTIES, "PropertiesChanged", &body).await
}

async fn send<B: serde::Serialize + DynamicType>(
    api: &Api,
    to: &[String],
    path: &str,
    interface: &str,
    signal: &str,
    body: &B,
) -> zbus::Result<()> {
    for connection in to {
        let destination = BusName::try_from(connection.as_str())?;
        api.connection.emit_signal(Some(destination), path, interface, signal, body).await?;
    }
    Ok(())
}
