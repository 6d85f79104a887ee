//! The arguments of `PullImage` and `PullKernel`.

use banger_domain::name::Name;
use banger_image::oci::{credentials::Credentials, reference::ImageRef};
use banger_proto::bus::{
    ErrorName,
    names::{action, detail},
    option::pull,
};

use super::{Api, Caller, Dict, Error, Options, Result, parse_name, read_platform, usable_kernel};
use crate::{
    engine::request::{OnConflict, PullImage, PullKernel, PullSource},
    ports::registry::Source,
};

/// The options of both: what to create.
struct Target {
    name: Option<Name>,
    shared: bool,
    on_conflict: OnConflict,
}

impl Target {
    fn read(options: &mut Options) -> Result<Self> {
        let name = options.string(pull::NAME)?.map(|name| parse_name(&name)).transpose()?;
        let shared = options.boolean(pull::SHARED)?.unwrap_or_default();
        let force = options.boolean(pull::FORCE)?.unwrap_or_default();
        let on_conflict = if force { OnConflict::Replace } else { OnConflict::Fail };
        Ok(Self { name, shared, on_conflict })
    }
}

/// Parses the arguments of `PullImage`.
pub(in crate::bus) async fn read_image_pull(
    api: &Api,
    caller: &Caller,
    reference: &str,
    options: Dict,
) -> Result<PullImage> {
    let catalog_name: Option<Name> = reference.parse().ok();
    let reference: ImageRef = reference.parse().map_err(|error| Error::of(ErrorName::InvalidArgs, &error))?;
    let mut options = Options::new(options);
    let Target { name, shared, on_conflict } = Target::read(&mut options)?;
    let kernel = options.string(pull::KERNEL)?;
    let platform = read_platform(options.string(pull::PLATFORM)?)?;
    let credentials = options.file(pull::CREDENTIALS)?;
    let from = options.string(pull::FROM)?;
    options.finish()?;
    let from = read_pull_source(catalog_name, from.as_deref())?;
    let kernel = usable_kernel(api, caller, kernel).await?;
    let credentials = match credentials {
        Some(file) => api.engine.read_credentials(file)?,
        None => Credentials::Anonymous,
    };
    let local_name = name.clone().or_else(|| reference.local_name());
    // What it replaces stays shared.
    let shared = shared || local_name.is_some_and(|name| api.engine.shares_image(caller.uid, &name));
    if shared {
        let details =
            vec![(detail::IMAGE, reference.to_string()), (detail::OBJECT, format!("image {reference}"))];
        api.require(caller, action::IMAGE_MANAGE_SHARED, details).await?;
    }
    let source = Source { reference, platform, credentials };
    Ok(PullImage { owner: caller.uid, source, from, name, shared, kernel, on_conflict })
}

/// Parses the arguments of `PullKernel`.
pub(in crate::bus) async fn read_kernel_pull(
    api: &Api,
    caller: &Caller,
    entry: &str,
    options: Dict,
) -> Result<PullKernel> {
    let entry = parse_name(entry)?;
    let mut options = Options::new(options);
    let Target { name, shared, on_conflict } = Target::read(&mut options)?;
    options.finish()?;
    let shared = shared || api.engine.shares_kernel(caller.uid, name.as_ref().unwrap_or(&entry));
    api.require_share(caller, shared, &entry).await?;
    Ok(PullKernel { owner: caller.uid, entry, name, shared, on_conflict })
}

/// Returns where to look for an image. A reference that cannot be a catalog entry's name goes to its registry.
fn read_pull_source(catalog_name: Option<Name>, from: Option<&str>) -> Result<PullSource> {
    match (catalog_name, from) {
        (Some(name), None) => Ok(PullSource::CatalogElseRegistry(name)),
        (Some(name), Some(pull::from::CATALOG)) => Ok(PullSource::Catalog(name)),
        (None, Some(pull::from::CATALOG)) => {
            Err(Error::invalid_option("this is not the name of a catalog entry"))
        }
        (None, None) | (_, Some(pull::from::REGISTRY)) => Ok(PullSource::Registry),
        (_, Some(_)) => Err(Error::invalid_option("from must be catalog or registry")),
    }
}
