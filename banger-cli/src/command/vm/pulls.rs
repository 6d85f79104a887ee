//! Pulls what a new sandbox needs and the host lacks: its image, and the default kernel.

use banger_proto::bus::{option::pull as option, proxy::Options};
use zbus::Variant;

use crate::{
    build::{self, Missing, Reporter},
    client::{bus::Bus, job::Jobs, pull, service::id_of},
    error::{Error, Result},
    ui::{progress::Progress, signals::Listener},
};

/// Pulls images and kernels that are missing on the host.
pub struct Pulls<'a> {
    pub bus: &'a Bus,
    pub jobs: &'a Jobs,
    pub progress: &'a Progress,
    pub listener: &'a mut Listener,
}

impl Pulls<'_> {
    /// Pulls an image, or gets the default image. Returns its id.
    pub async fn image(&mut self, image: Option<&str>) -> Result<String> {
        let Some(image) = image else { return self.default_image().await };
        let Self { bus, jobs, progress, listener } = self;
        let pulled = pull::image(bus, jobs, progress, listener, image, Options::new()).await;
        Ok(id_of(&pulled.map_err(|error| explain(image, error))?.0))
    }

    /// Pulls the default image. If no catalog has it, builds it from the recipe of its name. Returns its id.
    async fn default_image(&mut self) -> Result<String> {
        let default = self.bus.manager().await?.text("DefaultImage").to_owned();
        let Self { bus, jobs, progress, listener } = self;
        let pulled = pull::image(bus, jobs, progress, listener, &default, of_catalog(&default)).await;
        let nowhere = match pulled {
            Err(error) if build::is_missing(&error) => error,
            pulled => return Ok(id_of(&pulled?.0)),
        };
        let reporter = Reporter::new(progress.clone(), false);
        // A build creates a sandbox, too.
        match Box::pin(build::of_default_image(bus, jobs, &reporter, listener, &default)).await {
            Ok(built) => Ok(id_of(&built)),
            Err(Missing::NoRecipe) => Err(nowhere),
            Err(Missing::Failed(error)) => Err(error),
        }
    }

    /// Pulls the default kernel. Returns its id.
    pub async fn default_kernel(&mut self) -> Result<String> {
        let default = self.bus.manager().await?.text("DefaultKernel").to_owned();
        let kernel =
            pull::kernel(self.bus, self.jobs, self.progress, self.listener, &default, Options::new()).await?;
        Ok(id_of(&kernel))
    }
}

/// Returns options for a configured name, which must not match an image of a public registry.
fn of_catalog(image: &str) -> Options<'static> {
    match image.contains(['/', ':', '@']) {
        true => Options::new(),
        false => Options::from([(option::FROM, Variant::from(option::from::CATALOG))]),
    }
}

/// Explains a failed pull: the user may not have meant a registry.
pub fn explain(image: &str, error: Error) -> Error {
    if image.contains(['/', ':']) {
        return error;
    }
    let hint = error.hint().map_or_else(|| ".".to_owned(), |hint| format!("; {hint}"));
    error.with_hint(format!("this host has no image {image}: `banger image list` shows what it has{hint}"))
}
