//! What the stored catalogs offer, and whether a user already has it.

use std::collections::HashSet;

use banger_domain::{digest::Digest, id::Uid, name::Name};
use banger_image::{
    catalog::{
        Provenance,
        index::{Entry, ImageTarget, KernelTarget},
    },
    record::{Image, Kernel},
};
use banger_proto::size::Bytes;

use super::{Engine, Shared, catalog, error::Kind, item::Stored, now};

/// An entry of a catalog, as one user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// An image or a kernel.
    pub kind: Kind,
    /// The catalog.
    pub catalog: Name,
    /// Its name there.
    pub name: Name,
    /// One line for people.
    pub description: String,
    /// Its version.
    pub version: String,
    /// What to do if it is not published.
    pub note: String,
    /// The kernel of an image.
    pub kernel: Option<Name>,
    /// Its source; empty if it is not published.
    pub source: String,
    /// Digest of its content, if it is one file.
    pub digest: Option<Digest>,
    /// Bytes to fetch; unknown for an image in a registry.
    pub size: Option<Bytes>,
    /// Whether the user already has this version.
    pub is_here: bool,
}

/// The entries of all catalogs, and what is wrong with some catalogs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offers {
    /// The entries, in the order of the catalogs and of the entries in each.
    pub offers: Vec<Offer>,
    /// A sentence for each catalog that cannot be used, or not be fetched.
    pub problems: Vec<String>,
}

impl Engine {
    /// Returns what the stored catalogs offer, without fetching.
    pub fn offers(&self, caller: Uid) -> Offers {
        let shared = &self.shared;
        let now = now(&*shared.ports.clock);
        let (images, kernels) = (sources::<Image>(shared, caller), sources::<Kernel>(shared, caller));
        let mut offers = Vec::new();
        for catalog in shared.library.catalogs.all() {
            let Ok(Some(index)) = catalog.index(now) else { continue };
            let of_image = |entry| offer(Kind::Image, &catalog.name, entry, image_content, &images);
            offers.extend(index.images.iter().map(of_image));
            let of_kernel = |entry| offer(Kind::Kernel, &catalog.name, entry, kernel_content, &kernels);
            offers.extend(index.kernels.iter().map(of_kernel));
        }
        Offers { offers, problems: catalog::problems(shared) }
    }
}

/// Returns the sources of the objects that a user may use.
fn sources<I: Stored>(shared: &Shared, caller: Uid) -> HashSet<String> {
    let items = shared.inventory.all::<I>().into_iter();
    items
        .filter(|item| item.owner() == caller || item.is_shared())
        .map(|item| item.source().to_owned())
        .collect()
}

/// The content of a published entry.
struct EntryContent {
    /// The source that an object made of it has.
    source: String,
    digest: Option<Digest>,
    size: Option<Bytes>,
}

fn image_content(catalog: &Name, entry: &Name, target: &ImageTarget) -> EntryContent {
    match target {
        ImageTarget::Reference(reference) => {
            EntryContent { source: reference.to_string(), digest: reference.digest(), size: None }
        }
        ImageTarget::Archive(file) => file_content(catalog, entry, file.digest(), file.size()),
    }
}

fn kernel_content(catalog: &Name, entry: &Name, target: &KernelTarget) -> EntryContent {
    file_content(catalog, entry, target.kernel.digest(), target.size())
}

fn file_content(catalog: &Name, entry: &Name, digest: Digest, size: Bytes) -> EntryContent {
    let source = Provenance { catalog: catalog.clone(), entry: entry.clone(), digest };
    EntryContent { source: source.to_string(), digest: Some(digest), size: Some(size) }
}

fn offer<T>(
    kind: Kind,
    catalog: &Name,
    entry: &Entry<T>,
    content: impl Fn(&Name, &Name, &T) -> EntryContent,
    sources: &HashSet<String>,
) -> Offer {
    let content = entry.target.as_ref().map(|target| content(catalog, &entry.name, target));
    let is_here = content.as_ref().is_some_and(|content| sources.contains(&content.source));
    let nothing = EntryContent { source: String::new(), digest: None, size: None };
    let EntryContent { source, digest, size } = content.unwrap_or(nothing);
    Offer {
        kind,
        catalog: catalog.clone(),
        name: entry.name.clone(),
        description: entry.description.clone(),
        version: entry.version.clone(),
        note: entry.note.clone(),
        kernel: entry.kernel.clone(),
        source,
        digest,
        size,
        is_here,
    }
}
