//! Pushes an image to an OCI registry, as the user: with the user's credentials, proxies and certificates.
//!
//! ```text
//! image export ──► archive ──► [layout] packs the layers ──► [upload] blobs, then the manifest ──► registry
//!                                                                 │
//!                                                 [session] logs in ([token]), follows, tries again
//! ```
//!
//! The protocol is that of the OCI distribution specification 1.1
//! (<https://github.com/opencontainers/distribution-spec>, "Pushing"). The manifest comes last, so a push that fails leaves
//! at most blobs, which no image uses. What a registry answers is bounded, and shown without control characters.

pub mod layout;
mod retry;
mod session;
mod token;
mod upload;

use std::sync::Arc;

use banger_image::oci::reference::ImageRef;

use self::{layout::Image, session::Session};
use crate::{error::Result, ui::progress::Track, user::credentials::Login};

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// How many bytes the registry has of the image.
    pub size: u64,
    /// How many of them it did not have before.
    pub uploaded: u64,
}

/// Pushes an image under this reference. `mount_from` is a repository of the same registry that may have some of its blobs.
pub async fn push(
    image: &Image,
    reference: ImageRef,
    mount_from: Option<&str>,
    login: Option<Login>,
    track: Arc<Track>,
) -> Result<Pushed> {
    let session = Session::new(reference, mount_from, login)?;
    upload::image(&session, image, &track).await
}
