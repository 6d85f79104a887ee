//! Registries in memory. Each reference is an image. `unreachable.test` does not answer, a repository `private`
//! requires a login, `missing` does not exist, and `broken` sends wrong layers.

use std::{
    fs::File,
    io::{Read, Seek},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{digest::Digest, net::subnet::Subnet};
use banger_image::oci::{Descriptor, LayerFacts, RemoteImage, config::ImageConfig, credentials::Credentials};
use banger_proto::size::Bytes;
use sha2::{Digest as _, Sha256};

use super::Sim;
use crate::ports::{
    FromHost as _, Progress,
    registry::{Error, Fetch, Prune, Pruned, Registry, Result, Source},
};

const LAYERS: u64 = 2;
const LAYER: Bytes = Bytes::mib(3);
/// How often to check whether fetches are blocked.
const LOOK: Duration = Duration::from_millis(5);

fn digest(text: &str) -> Digest {
    Digest::from_bytes(Sha256::digest(text).into())
}

#[async_trait]
impl Registry for Sim {
    fn forbid_guests(&self, guests: Subnet) {
        self.lock().forbidden = Some(guests);
    }

    fn credentials(&self, file: OwnedFd) -> Result<Credentials> {
        let mut bytes = Vec::new();
        let unread = |_| Error::BadFile { message: "the credentials cannot be read".to_owned() };
        let mut file = File::from(file);
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(unread)?;
        Credentials::parse(&bytes).map_err(|error| Error::BadFile { message: error.to_string() })
    }

    async fn resolve(&self, source: &Source) -> Result<RemoteImage> {
        let name = source.reference.to_string();
        let state = self.step("ask a registry")?;
        let edition = state.tag_moves.get(&name).copied().unwrap_or_default();
        let address = source.reference.registry().host().parse();
        if address.is_ok_and(|address| state.forbidden.is_some_and(|guests| guests.contains(address))) {
            return Err(Error::Refused { message: format!("{name}: it is the address of a guest") });
        }
        drop(state);
        let repository = source.reference.repository();
        if source.reference.registry().as_str() == "unreachable.test" {
            return Err(Error::Unreachable { message: "unreachable.test cannot be reached".to_owned() });
        }
        if repository.contains("missing") {
            return Err(Error::Refused { message: format!("{name}: 404, manifest unknown") });
        }
        if repository.contains("private") && source.credentials == Credentials::Anonymous {
            return Err(Error::AuthRequired { message: format!("the registry requires a login for {name}") });
        }
        let layer = |n: u64| LayerFacts {
            blob: Descriptor { digest: digest(&format!("{name} {edition} {n}")), size: LAYER },
            diff_id: digest(&format!("{name} {edition} {n} unpacked")),
        };
        let config = ImageConfig {
            env: vec!["PATH=/usr/bin:/bin".to_owned(), "LANG=C.UTF-8".to_owned()],
            working_dir: "/srv".to_owned(),
            cmd: vec!["/bin/sh".to_owned()],
            ..ImageConfig::default()
        };
        let layers = (0..LAYERS).map(layer).collect();
        Ok(RemoteImage { manifest: digest(&format!("{name} {edition}")), layers, config, notes: Vec::new() })
    }

    async fn fetch(
        &self,
        source: &Source,
        layers: &[LayerFacts],
        progress: Arc<dyn Progress>,
    ) -> Result<Fetch> {
        let mut state = self.step("fetch layers")?;
        for layer in layers {
            if state.cached.insert(layer.blob.digest) {
                state.fetched += 1;
            }
        }
        drop(state);
        let pipe = || std::io::pipe().map_err(|error| Error::os("make a pipe", error));
        let blobs: Vec<OwnedFd> =
            layers.iter().map(|_| Ok(OwnedFd::from(pipe()?.0))).collect::<Result<_>>()?;
        let (sim, is_broken) = (self.clone(), source.reference.repository().contains("broken"));
        let total = Bytes(layers.iter().map(|layer| layer.blob.size.0).sum());
        let work = Box::pin(async move {
            progress.advanced(Bytes(total.0 / 2), Some(total));
            loop {
                let held = sim.lock().registry_blocked;
                if !held {
                    break;
                }
                tokio::time::sleep(LOOK).await;
            }
            sim.step("receive layers").map(drop)?;
            match is_broken {
                true => Err(Error::Mismatch { message: "a layer has another digest".to_owned() }),
                false => Ok(()),
            }
        });
        Ok(Fetch { blobs, work })
    }

    async fn forget(&self, _source: &Source, layers: &[LayerFacts]) -> Result<()> {
        let mut state = self.lock();
        for layer in layers {
            state.cached.remove(&layer.blob.digest);
        }
        Ok(())
    }

    async fn prune(&self, prune: Prune) -> Result<Pruned> {
        let mut state = self.step("prune the cache")?;
        let blobs = state.cached.len() as u64;
        if !prune.dry_run {
            state.cached.clear();
        }
        Ok(Pruned { blobs, bytes: Bytes(blobs * LAYER.0) })
    }
}
