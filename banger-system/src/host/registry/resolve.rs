//! Finds the image that a reference points to, by way of indexes. What an index does not say about its entries is in
//! their documents, so the best ones are asked for until one is an image for the platform.

use std::io::Read;

use banger_domain::digest::Digest;
use banger_image::oci::{
    RemoteImage, Unusable,
    config::{self, Parsed},
    index::{Index, MAX_TRIES, Selector},
    manifest::{self, Document, MAX_DOCUMENT, Manifest},
};
use banger_proto::size::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Registries, cache_error, download::ensure, session::Session};
use crate::{
    host::blocking::blocking,
    ports::registry::{Error, Result, Source},
};

/// An index may name another index, but no deeper.
const MAX_NESTING: usize = 3;

/// A document to ask for.
struct Wanted {
    /// A tag or a digest.
    name: String,
    digest: Option<Digest>,
    size: Option<Bytes>,
    /// How many indexes led to it.
    depth: usize,
}

/// What a document turned out to be.
enum Found {
    Image(Box<RemoteImage>),
    /// An index, and its candidates, the best one last.
    Index(Vec<Wanted>),
}

impl Registries {
    /// Finds the image for the platform.
    pub(super) async fn find_image(&self, source: &Source) -> Result<RemoteImage> {
        let mut sessions = self.sessions(source).await?.into_iter().peekable();
        while let Some(session) = sessions.next() {
            match self.find_at(&session, source).await {
                Err(error) if sessions.peek().is_some() => session.log_fallback(&error),
                found => return found,
            }
        }
        Err(Error::Refused { message: format!("{}: no server has it", source.reference) })
    }

    async fn find_at(&self, session: &Session, source: &Source) -> Result<RemoteImage> {
        let unusable = |error: &dyn std::fmt::Display| Error::Unsupported {
            message: format!("{}: {error}", source.reference),
        };
        let (name, digest) = (source.reference.wanted(), source.reference.digest());
        let mut ahead = vec![Wanted { name, digest, size: None, depth: 0 }];
        let mut other = None;
        for _ in 0..MAX_TRIES {
            let Some(next) = ahead.pop() else { break };
            match self.look(session, source, &next).await? {
                Ok(Found::Image(image)) => return Ok(*image),
                Ok(Found::Index(candidates)) => ahead.extend(candidates),
                // The first reason is that of the best candidate.
                Err(error) if error.is_other() => drop(other.get_or_insert(error)),
                Err(error) => return Err(unusable(&error)),
            }
        }
        match other {
            Some(error) => Err(unusable(&error)),
            None => Err(unusable(&"its index has no image")),
        }
    }

    /// Asks for a document, and says what it is or why it cannot be used.
    async fn look(
        &self,
        session: &Session,
        source: &Source,
        next: &Wanted,
    ) -> Result<Result<Found, Unusable>> {
        let (bytes, kind) = session.manifest(&next.name, &manifest::accepted(), MAX_DOCUMENT.0).await?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        let is_other = next.digest.is_some_and(|expect| expect != digest);
        if is_other || next.size.is_some_and(|Bytes(size)| size != bytes.len() as u64) {
            let message = format!("{} sent another manifest than requested", session.host());
            return Err(Error::Mismatch { message });
        }
        match Document::parse(&bytes, kind.as_deref()) {
            Ok(Document::Index(_)) if next.depth == MAX_NESTING => {
                let message = format!("{}: its indexes are nested too deeply", source.reference);
                Err(Error::Unsupported { message })
            }
            Ok(Document::Index(index)) => Ok(candidates(&index, source, next.depth + 1).map(Found::Index)),
            Ok(Document::Manifest(manifest)) if manifest.has_foreign_layers => {
                let why = "a registry may not hand out one of its layers, and banger asks no other servers";
                Err(Error::Unsupported { message: format!("{}: {why}", source.reference) })
            }
            Ok(Document::Manifest(manifest)) => self.describe(session, source, digest, &manifest).await,
            Err(error) => Ok(Err(error)),
        }
    }

    /// Reads the configuration of an image.
    async fn describe(
        &self,
        session: &Session,
        source: &Source,
        digest: Digest,
        manifest: &Manifest,
    ) -> Result<Result<Found, Unusable>> {
        let blob = self.blob(source, manifest.config).await?;
        ensure(session, &blob).await?;
        let bytes = blocking("read a configuration", move || {
            let mut bytes = Vec::new();
            blob.open().map_err(cache_error)?.read_to_end(&mut bytes).map_err(cache_error)?;
            Ok::<_, Error>(bytes)
        })
        .await?;
        let parsed = config::parse(&bytes, manifest, &source.platform);
        Ok(parsed.map(|Parsed { layers, config, notes }| {
            Found::Image(Box::new(RemoteImage { manifest: digest, layers, config, notes }))
        }))
    }
}

/// Returns the candidates of an index, the best one last.
fn candidates(index: &Index, source: &Source, depth: usize) -> Result<Vec<Wanted>, Unusable> {
    let chosen = index.choose(Selector { platform: &source.platform, tag: None })?;
    let wanted = chosen.into_iter().rev().map(|candidate| {
        let document = index.document(candidate)?;
        let (digest, size) = (Some(document.digest), Some(document.size));
        Ok(Wanted { name: document.digest.to_string(), digest, size, depth })
    });
    wanted.collect()
}
