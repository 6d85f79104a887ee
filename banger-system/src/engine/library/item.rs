//! What differs between images and kernels for the inventory and for the pipeline: the table, the rows and the files.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use banger_domain::{
    id::{ImageId, KernelId},
    name::Name,
};
use banger_image::record::{Image, Kernel};

use super::{
    error::Result,
    inventory::State,
    problems::Subject,
    view::{Event, Fact, Item, Object},
};
use crate::ports::{
    Ports,
    store::{self, Store},
};

/// An image or a kernel, as the inventory, the store and the host keep it.
#[async_trait]
pub(in crate::engine) trait Stored: Item {
    /// The subject of the problem that there may be files without a row.
    const ORPHANS: Subject;

    /// Returns the object with this id.
    fn object(id: Self::Id) -> Object;
    /// Returns what the result of a pull says about it.
    fn pull_facts(&self) -> Vec<(&'static str, Fact)>;

    /// Returns the inventory's table of its kind.
    fn table(state: &State) -> &HashMap<Self::Id, Arc<Self>>;
    /// Returns the same table, to change it.
    fn table_mut(state: &mut State) -> &mut HashMap<Self::Id, Arc<Self>>;
    /// Returns the names of the objects that use it.
    fn users(state: &State, id: Self::Id) -> Vec<String>;
    /// Returns the event of its publication.
    fn added(self: Arc<Self>) -> Event;
    /// Returns the event of its removal.
    fn removed(self: Arc<Self>) -> Event;
    /// Returns the event of its change.
    fn changed(old: Arc<Self>, new: Arc<Self>) -> Event;
    /// Returns the same object with another name.
    fn renamed(&self, name: Name) -> Self;

    /// Stores its row, and deletes the row of the object that it replaces in the same transaction.
    async fn put_row(&self, store: &dyn Store, old: Option<Self::Id>) -> store::Result<()>;
    /// Returns all objects that have a row.
    async fn rows(store: &dyn Store) -> store::Result<Vec<Self>>;
    /// Deletes a row.
    async fn delete_row(store: &dyn Store, id: Self::Id) -> store::Result<()>;
    /// Returns the objects that have files.
    async fn found_files(ports: &Ports) -> Result<Vec<Self::Id>>;
    /// Removes the files. A repeat is safe.
    async fn remove_files(ports: &Ports, id: Self::Id) -> Result<()>;
    /// Returns the subject of the problem that its files cannot be removed.
    fn files(id: Self::Id) -> Subject;
}

#[async_trait]
impl Stored for Image {
    const ORPHANS: Subject = Subject::ImageOrphans;

    fn object(id: ImageId) -> Object {
        Object::Image(id)
    }

    fn pull_facts(&self) -> Vec<(&'static str, Fact)> {
        let digest = self.origin.as_ref().map(|origin| ("digest", Fact::Text(origin.manifest.to_string())));
        digest.into_iter().chain([("bytes", Fact::Number(self.facts.disk_usage.0))]).collect()
    }

    fn table(state: &State) -> &HashMap<ImageId, Arc<Self>> {
        &state.images
    }

    fn table_mut(state: &mut State) -> &mut HashMap<ImageId, Arc<Self>> {
        &mut state.images
    }

    fn users(state: &State, id: ImageId) -> Vec<String> {
        state.image_users(id)
    }

    fn added(self: Arc<Self>) -> Event {
        Event::ImageAdded(self)
    }

    fn removed(self: Arc<Self>) -> Event {
        Event::ImageRemoved(self)
    }

    fn changed(old: Arc<Self>, new: Arc<Self>) -> Event {
        Event::ImageChanged { old, new }
    }

    fn renamed(&self, name: Name) -> Self {
        Self { name, ..self.clone() }
    }

    async fn put_row(&self, store: &dyn Store, old: Option<ImageId>) -> store::Result<()> {
        match old {
            None => store.put_image(self).await,
            Some(old) => store.replace_image(self, old).await,
        }
    }

    async fn rows(store: &dyn Store) -> store::Result<Vec<Self>> {
        store.images().await
    }

    async fn delete_row(store: &dyn Store, id: ImageId) -> store::Result<()> {
        store.delete_image(id).await
    }

    async fn found_files(ports: &Ports) -> Result<Vec<ImageId>> {
        Ok(ports.image_files.found().await?)
    }

    async fn remove_files(ports: &Ports, id: ImageId) -> Result<()> {
        Ok(ports.image_files.remove(id).await?)
    }

    fn files(id: ImageId) -> Subject {
        Subject::ImageFiles(id)
    }
}

#[async_trait]
impl Stored for Kernel {
    const ORPHANS: Subject = Subject::KernelOrphans;

    fn object(id: KernelId) -> Object {
        Object::Kernel(id)
    }

    fn pull_facts(&self) -> Vec<(&'static str, Fact)> {
        vec![("digest", Fact::Text(self.facts.digest.clone())), ("bytes", Fact::Number(self.facts.size.0))]
    }

    fn table(state: &State) -> &HashMap<KernelId, Arc<Self>> {
        &state.kernels
    }

    fn table_mut(state: &mut State) -> &mut HashMap<KernelId, Arc<Self>> {
        &mut state.kernels
    }

    fn users(state: &State, id: KernelId) -> Vec<String> {
        state.kernel_users(id)
    }

    fn added(self: Arc<Self>) -> Event {
        Event::KernelAdded(self)
    }

    fn removed(self: Arc<Self>) -> Event {
        Event::KernelRemoved(self)
    }

    fn changed(old: Arc<Self>, new: Arc<Self>) -> Event {
        Event::KernelChanged { old, new }
    }

    fn renamed(&self, name: Name) -> Self {
        Self { name, ..self.clone() }
    }

    async fn put_row(&self, store: &dyn Store, old: Option<KernelId>) -> store::Result<()> {
        match old {
            None => store.put_kernel(self).await,
            Some(old) => store.replace_kernel(self, old).await,
        }
    }

    async fn rows(store: &dyn Store) -> store::Result<Vec<Self>> {
        store.kernels().await
    }

    async fn delete_row(store: &dyn Store, id: KernelId) -> store::Result<()> {
        store.delete_kernel(id).await
    }

    async fn found_files(ports: &Ports) -> Result<Vec<KernelId>> {
        Ok(ports.kernel_files.found().await?)
    }

    async fn remove_files(ports: &Ports, id: KernelId) -> Result<()> {
        Ok(ports.kernel_files.remove(id).await?)
    }

    fn files(id: KernelId) -> Subject {
        Subject::KernelFiles(id)
    }
}
