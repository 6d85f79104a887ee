//! OCI image layouts (OCI image specification, "Image Layout").

use std::collections::BTreeMap;

use banger_proto::{bundle, count::counted};
use serde::Deserialize;

use super::{Error, Image, Look, Several, Source, Temporary, first, source::Part};
use crate::{
    oci::{
        Unusable, config,
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
    name: Option<&str>,
    temporary: Temporary<'_>,
) -> Result<Image, Error> {
    let mut search = Search { source, wanted, left: MAX_TRIES };
    match search.index(index, wanted, 0)? {
        Look::Image(Picked { parts, mut annotations }) => {
            let mut said = |annotation| annotations.remove(annotation);
            let name = name.map(str::to_owned).or(said(bundle::NAME)).ok_or(Error::Unnamed)?;
            let kernel = said(bundle::KERNEL);
            let (file, parts) = search.source.gather(parts, temporary)?;
            Ok(Image { file, parts, name, kernel })
        }
        Look::Other(why) => Err(why.into()),
        Look::Spent => Err(Error::too_many()),
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
        let names = |candidate: Candidate| Shown::of(index.names(candidate).join(" ").as_bytes()).to_string();
        let candidates = match index.choose(wanted) {
            Ok(candidates) => candidates,
            Err(other) if other.is_other() => return Ok(Look::Other(other)),
            Err(error) => return Err(error.into()),
        };
        let several = if depth == 0 { Several::Refused } else { Several::Fine };
        first(&candidates, several, names, |candidate| {
            let Some(left) = self.left.checked_sub(1) else { return Ok(Look::Spent) };
            self.left = left;
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
        let mut parts = vec![self.source.part(&name)?.ok_or_else(|| Error::missing(&name))?];
        for blob in [&manifest.config].into_iter().chain(&manifest.layers) {
            let name = path(&blob.digest);
            let part = self.source.part(&name)?.ok_or_else(|| Error::missing(&name))?;
            let (length, stated) = (part.length, blob.size.0);
            if length != stated {
                return Err(Error::unusable(format!(
                    "{name} has {} instead of {stated}",
                    counted(length, "byte")
                )));
            }
            parts.push(part);
        }
        let annotated: Annotated =
            serde_json::from_slice(bytes).map_err(|error| Unusable::json("its manifest", &error))?;
        Ok(Look::Image(Picked { parts, annotations: annotated.annotations.unwrap_or_default() }))
    }
}
