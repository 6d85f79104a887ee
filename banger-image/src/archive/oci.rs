//! OCI image layouts (OCI image specification, "Image Layout").

use std::collections::BTreeMap;

use banger_proto::bundle;
use serde::Deserialize;

use super::{Error, Image, Look, Several, Source, Temporary, first, source::Part};
use crate::{
    oci::{
        config,
        index::{Candidate, Index, MAX_TRIES, Selector},
        layout::path,
        manifest::{Document, Manifest},
    },
    rootfs::error::Shown,
};

/// An index may refer to another index, but no deeper.
const MAX_NESTING: usize = 3;

/// An image that was looked at.
struct Picked {
    parts: Vec<Part>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Finds the wanted image.
pub(super) fn find(
    source: Source,
    index: &Index,
    wanted: Selector<'_>,
    temporary: Temporary<'_>,
) -> Result<Image, Error> {
    let mut search = Search { source, wanted, left: MAX_TRIES };
    match search.index(index, wanted, 0)? {
        Look::Image(Picked { parts, mut annotations }) => {
            let (file, parts) = search.source.gather(parts, temporary)?;
            let mut said = |annotation| annotations.remove(annotation);
            Ok(Image { file, parts, name: said(bundle::NAME), kernel: said(bundle::KERNEL) })
        }
        Look::Other(why) => Err(why.into()),
    }
}

struct Search<'a> {
    source: Source,
    wanted: Selector<'a>,
    /// How many more documents are looked at.
    left: usize,
}

impl Search<'_> {
    /// Chooses from an index. That of a layout lists images; one below it has one image for several platforms.
    fn index(&mut self, index: &Index, wanted: Selector<'_>, depth: usize) -> Result<Look<Picked>, Error> {
        let names = |candidate: Candidate| match index.names(candidate) {
            [] => index.document(candidate).map(|document| document.digest.to_string()).unwrap_or_default(),
            names => Shown::of(names.join(" ").as_bytes()).to_string(),
        };
        let candidates = match index.choose(wanted) {
            Ok(candidates) => candidates,
            Err(other) if other.is_other() => return Ok(Look::Other(other)),
            Err(error) => return Err(error.into()),
        };
        let several = if depth == 0 { Several::Refused } else { Several::Fine };
        first(&candidates, several, names, |candidate| {
            self.left =
                self.left.checked_sub(1).ok_or_else(|| Error::unusable("it lists too many artifacts"))?;
            let name = path(&index.document(candidate)?.digest);
            let bytes = self.source.document(&name)?.ok_or_else(|| Error::missing(&name))?;
            match Document::parse(&bytes, None) {
                Ok(Document::Index(_)) if depth == MAX_NESTING => {
                    Err(Error::unusable("its indexes are nested too deeply"))
                }
                // The tag is that of the whole index.
                Ok(Document::Index(index)) => self.index(&index, Selector { tag: None, ..wanted }, depth + 1),
                Ok(Document::Manifest(manifest)) => self.image(name, &bytes, &manifest),
                Err(other) if other.is_other() => Ok(Look::Other(other)),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Looks at an image, whose manifest has this name and these bytes.
    fn image(&mut self, name: String, bytes: &[u8], manifest: &Manifest) -> Result<Look<Picked>, Error> {
        let at = path(&manifest.config.digest);
        let config = self.source.document(&at)?.ok_or_else(|| Error::missing(&at))?;
        match config::parse(&config, manifest, self.wanted.platform) {
            Err(other) if other.is_other() => return Ok(Look::Other(other)),
            parsed => parsed?,
        };
        let layers = manifest.layers.iter().map(|layer| path(&layer.digest));
        let mut parts = Vec::new();
        for name in [name, at].into_iter().chain(layers) {
            parts.push(self.source.part(&name)?.ok_or_else(|| Error::missing(&name))?);
        }
        let annotated: Annotated =
            serde_json::from_slice(bytes).map_err(|error| Error::unusable(error.to_string()))?;
        Ok(Look::Image(Picked { parts, annotations: annotated.annotations.unwrap_or_default() }))
    }
}
