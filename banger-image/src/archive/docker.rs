//! Docker archives: what `docker save` writes since version 1.10, and podman, nix, crane and kaniko after it. The file
//! `manifest.json` lists images by the names of their configuration and layers. The names are free, and no digest is
//! stated, so an OCI manifest is made for the service, which checks its digests like any other.

use std::{io::Write, iter};

use banger_domain::digest::Digest;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    Error, Image, Look, Several, Source, Temporary, first,
    source::{Part, copying, distinct},
};
use crate::{
    oci::{
        Unusable, config,
        index::{self, Candidate, MAX_ENTRIES, MAX_TRIES, Offer, Selector},
        manifest::MAX_LAYERS,
    },
    rootfs::error::Shown,
};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Finds the wanted image in the list.
pub(super) fn find(
    mut source: Source,
    list: &[u8],
    wanted: Selector<'_>,
    name: Option<&str>,
    temporary: Temporary<'_>,
) -> Result<Image, Error> {
    let list: Vec<Listed> = serde_json::from_slice(list).map_err(|error| {
        let error = error.to_string();
        Error::unusable(format!("its manifest.json is malformed: {}", Shown::of(error.as_bytes())))
    })?;
    if list.is_empty() {
        return Err(Error::unusable("its manifest.json lists no image"));
    }
    if list.len() > MAX_ENTRIES {
        return Err(Error::unusable(format!("its manifest.json lists more than {MAX_ENTRIES} images")));
    }
    let offer = |listed: &Listed| {
        let tags = listed.repo_tags.clone().filter(|tags| !tags.is_empty());
        Offer {
            platform: None,
            names: tags.unwrap_or_else(|| vec![listed.config.clone()]),
            content: format!("{} {:?}", listed.config, listed.layers),
        }
    };
    let offers: Vec<Offer> = list.iter().map(offer).collect();
    let names =
        |candidate: Candidate| Shown::of(offers[candidate.position].names.join(" ").as_bytes()).to_string();
    let mut candidates = index::choose(&offers, wanted)?;
    candidates.truncate(MAX_TRIES);
    let found = first(&candidates, Several::Refused, names, |candidate| {
        let listed = &list[candidate.position];
        let bytes = source.document(&listed.config)?.ok_or_else(|| Error::missing(&listed.config))?;
        let stated = config::stated(&bytes)?;
        Ok(match wanted.platform.fit(&stated) {
            Some(_) => Look::Image(listed),
            None => Look::Other(Unusable::is_for(&stated, wanted.platform)),
        })
    })?;
    match found {
        Look::Image(listed) => take(source, listed, name.ok_or(Error::Unnamed)?.to_owned(), temporary),
        Look::Other(why) => Err(why.into()),
        Look::Spent => Err(Error::too_many()),
    }
}

fn take(mut source: Source, listed: &Listed, name: String, temporary: Temporary<'_>) -> Result<Image, Error> {
    let layers = listed.layers.as_deref().unwrap_or_default();
    if layers.len() > MAX_LAYERS {
        return Err(Error::unusable(format!("it has more than {MAX_LAYERS} layers")));
    }
    let mut parts: Vec<Part> = Vec::new();
    for file in [&listed.config].into_iter().chain(layers) {
        parts.push(source.part(file)?.ok_or_else(|| Error::missing(file))?);
    }
    let (parts, numbers) = distinct(parts)?;
    let mut digests = vec![Sha256::new(); parts.len()];
    let (mut file, ranges) =
        source.gather_own(&parts, temporary, |number, bytes| digests[number].update(bytes))?;
    let digests = digests.into_iter().map(|digest| Digest::from_bytes(digest.finalize().into()).to_string());
    let digests: Vec<String> = digests.collect();
    let kinds = iter::once(CONFIG).chain(iter::repeat(LAYER));
    let mut described = numbers.iter().zip(kinds).map(|(&number, kind)| {
        let (_, length) = ranges[number];
        json!({ "mediaType": kind, "digest": digests[number], "size": length })
    });
    let config = described.next();
    let layers: Vec<_> = described.collect();
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let manifest = manifest.to_string().into_bytes();
    let end = file.metadata().map_err(copying)?.len();
    file.write_all(&manifest).map_err(copying)?;
    let parts = iter::once((end, manifest.len() as u64)).chain(numbers.iter().map(|&number| ranges[number]));
    Ok(Image { file, parts: parts.collect(), name, kernel: None })
}
