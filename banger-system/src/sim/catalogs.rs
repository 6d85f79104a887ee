//! A catalog in memory. Its files are empty, and their digests are not checked.

use std::{fs::File, os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use banger_domain::{
    digest::Digest,
    id::Timestamp,
    name::{self, Name},
};
use banger_image::{
    catalog::{
        RemoteFile,
        index::{Date, Entry, ImageTarget, Index, KernelTarget},
    },
    oci::Descriptor,
};

use super::Sim;
use crate::ports::{
    FromHost as _, Progress,
    catalogs::{Catalogs, Error, FetchedIndex, Result},
    registry,
};

const NAME: &str = "sim";
const SIZE: banger_proto::size::Bytes = banger_proto::size::Bytes::mib(8);

/// The default catalog: an image in a file, one in a registry, one that is not published yet, and a kernel.
fn usual() -> Result<Index> {
    let bad = |error: &dyn std::error::Error| Error::other("make a catalog", error.to_string());
    let entry = |name: &str| -> Result<Name> { name.parse().map_err(|error: name::Error| bad(&error)) };
    let image = |name: &str, description: &str, note: &str, target| -> Result<Entry<ImageTarget>> {
        Ok(Entry {
            name: entry(name)?,
            description: description.to_owned(),
            version: "1".to_owned(),
            kernel: None,
            note: note.to_owned(),
            target,
        })
    };
    let reference = format!("registry.test/org/tool:1@{}", Digest::from_bytes([8; 32]));
    let reference =
        reference.parse().map_err(|error: banger_image::oci::reference::NotAReference| bad(&error))?;
    let kernel = KernelTarget { kernel: file(1)?, modules: Some(file(2)?) };
    Ok(Index {
        serial: 1,
        expires: Date::parse("2999-12-31").map_err(|error| bad(&error))?,
        images: vec![
            image("debian-bookworm", "A system in a file", "", Some(ImageTarget::Archive(file(3)?)))?,
            image("tool", "A tool of a registry", "", Some(ImageTarget::Reference(reference)))?,
            image("later", "What is to come", "It is published in the next edition.", None)?,
        ],
        kernels: vec![Entry {
            name: entry("debian")?,
            description: "A kernel with all that a guest needs".to_owned(),
            version: "6.1.0-sim".to_owned(),
            kernel: None,
            note: String::new(),
            target: Some(kernel),
        }],
    })
}

fn file(number: u8) -> Result<RemoteFile> {
    let location = format!("file-{number}").parse();
    let location = location.map_err(|error: banger_image::catalog::Unusable| {
        Error::other("make a catalog", error.to_string())
    })?;
    Ok(RemoteFile { location, content: Descriptor { digest: Digest::from_bytes([number; 32]), size: SIZE } })
}

#[async_trait]
impl Catalogs for Sim {
    fn names(&self) -> Vec<Name> {
        NAME.parse().into_iter().collect()
    }

    async fn stored(&self, _catalog: &Name) -> Result<Option<FetchedIndex>> {
        Ok(self.lock().stored_catalog.clone())
    }

    async fn refresh(&self, _catalog: &Name, now: Timestamp) -> Result<FetchedIndex> {
        let mut state = self.step("fetch a catalog")?;
        if state.catalog_unreachable {
            let message = "catalog.test cannot be reached".to_owned();
            return Err(registry::Error::Unreachable { message }.into());
        }
        let index = match &state.catalog {
            Some(index) => Arc::clone(index),
            None => Arc::new(usual()?),
        };
        let edition = FetchedIndex { index, fetched_at: now };
        state.stored_catalog = Some(edition.clone());
        Ok(edition)
    }

    async fn fetch(
        &self,
        _catalog: &Name,
        file: &RemoteFile,
        progress: Arc<dyn Progress>,
    ) -> Result<OwnedFd> {
        let mut state = self.step("fetch a file of a catalog")?;
        if state.cached.insert(file.digest()) {
            state.fetched += 1;
        }
        progress.advanced(file.size(), Some(file.size()));
        let null = File::open("/dev/null").map_err(|error| Error::os("open /dev/null", error))?;
        Ok(null.into())
    }
}
