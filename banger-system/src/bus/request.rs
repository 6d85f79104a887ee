//! Parses and checks the arguments of the manager's methods.

use std::{collections::HashMap, os::fd::OwnedFd};

use banger_domain::{
    name::{Name, Reference},
    net::nic::Nat,
    ssh::AuthorizedKey,
    timezone::Timezone,
    vm::Init,
    vmm::VmmChoice,
};
use banger_image::oci::{
    credentials::Credentials, manifest::MAX_LAYERS, platform::Platform, reference::ImageRef,
};
use banger_proto::{
    bus::{
        ErrorName,
        names::{action, detail},
        option::{create, import, pull},
    },
    size::Bytes,
};

use super::{
    api::Api,
    caller::Caller,
    error::{Error, Result},
    options::{Dict, Options},
    vm::read_start,
};
use crate::{
    engine::request::{CreateVm, ImportImage, ImportSource, OnConflict, PullImage, PullSource},
    ports::{images::FileRange, registry::Source},
};

/// Limits of labels.
const MAX_LABELS: usize = 32;
const MAX_LABEL: usize = 256;

/// The files of an import.
pub(super) struct Files(pub(super) HashMap<String, zbus::OwnedFd>);

impl Files {
    /// Returns the file with this name, if it is there.
    pub(super) fn optional(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name).map(OwnedFd::from)
    }

    /// Returns the file with this name, which must be there.
    pub(super) fn required(&mut self, name: &str) -> Result<OwnedFd> {
        let missing = || Error::new(ErrorName::InvalidArgs, format!("the file {name} is missing"));
        self.optional(name).ok_or_else(missing)
    }

    /// Checks that all files were used.
    pub(super) fn finish(self) -> Result<()> {
        match self.0.into_keys().min() {
            Some(name) => {
                let name: String = name.chars().take(60).collect();
                Err(Error::invalid_option(format!("unknown file {name:?}")))
            }
            None => Ok(()),
        }
    }
}

/// Parses the arguments of `CreateVM`.
pub(super) async fn read_create(api: &Api, caller: &Caller, name: &str, options: Dict) -> Result<CreateVm> {
    let mut options = Options::new(options);
    let init = match options.string(create::INIT)? {
        None => Init::default(),
        Some(text) => Init::parse(&text)
            .ok_or_else(|| Error::invalid_option("init must be auto, agent, or an absolute path"))?,
    };
    let vmm = match options.string(create::VMM)? {
        None => VmmChoice::default(),
        Some(word) => VmmChoice::parse(&word)
            .ok_or_else(|| Error::invalid_option("vmm must be auto, firecracker, or qemu"))?,
    };
    let nat = if options.boolean(create::NAT)?.unwrap_or(false) { Nat::On } else { Nat::Off };
    let authorized_keys = options.list(create::SSH_AUTHORIZED_KEYS)?;
    let authorized_keys = AuthorizedKey::parse_all(&authorized_keys)
        .map_err(|error| Error::invalid_option(format!("{}: {error}", create::SSH_AUTHORIZED_KEYS)))?;
    let (zone, rule) = (options.string(create::TIMEZONE)?, options.string(create::TIMEZONE_RULE)?);
    let timezone = match (zone, rule) {
        (None, None) => None,
        (Some(zone), rule) => Some(
            Timezone::new(&zone, rule.as_deref())
                .map_err(|error| Error::of(ErrorName::InvalidOption, &error))?,
        ),
        (None, Some(_)) => return Err(Error::invalid_option("a time zone rule needs a time zone")),
    };
    let labels = options.strings(create::LABELS)?;
    let fits = |(key, value): (&String, &String)| key.len() + value.len() <= MAX_LABEL;
    if labels.len() > MAX_LABELS || !labels.iter().all(fits) {
        return Err(Error::invalid_option(format!(
            "there may be {MAX_LABELS} labels of {MAX_LABEL} bytes each"
        )));
    }
    let lifetime = options.string(create::LIFETIME)?;
    let start = options.boolean(create::START)?.unwrap_or(true);
    let how = read_start(&mut options)?;
    let request = CreateVm {
        owner: caller.uid,
        name: if name.is_empty() { None } else { Some(parse_name(name)?) },
        image: match options.string(create::IMAGE)? {
            Some(text) => Some(api.usable_image(caller, &text).await?),
            None => None,
        },
        kernel: usable_kernel(api, caller, options.string(create::KERNEL)?).await?,
        vcpus: options.small_number(create::VCPUS)?,
        memory: options.number(create::MEMORY)?.map(Bytes),
        disk_size: options.number(create::DISK_SIZE)?.map(Bytes),
        root_size: options.number(create::ROOT_SIZE)?.map(Bytes),
        hostname: match options.string(create::HOSTNAME)? {
            Some(text) => Some(parse_name(&text)?),
            None => None,
        },
        init,
        vmm,
        nat,
        timezone,
        authorized_keys,
        lifetime: api.lifetime(caller, lifetime.as_deref()).await?,
        labels,
        start: start.then_some(how),
    };
    options.finish()?;
    Ok(request)
}

/// Parses the arguments of `ImportImage`.
pub(super) async fn read_import(
    api: &Api,
    caller: &Caller,
    name: &str,
    files: HashMap<String, zbus::OwnedFd>,
    options: Dict,
) -> Result<ImportImage> {
    let name = parse_name(name)?;
    let mut files = Files(files);
    let layout = files.optional(import::FILE_LAYOUT);
    let rootfs = match layout {
        Some(_) => None,
        None => Some(files.required(import::FILE_ROOTFS)?),
    };
    files.finish()?;
    let mut options = Options::new(options);
    let content = match (rootfs, layout) {
        (Some(rootfs), _) => ImportSource::Rootfs(rootfs),
        (None, Some(layout)) => ImportSource::Layout(layout, read_parts(&options.ranges(import::PARTS)?)?),
        (None, None) => return Err(Error::new(ErrorName::InvalidArgs, "no file was passed")),
    };
    let shared = options.boolean(import::SHARED)?.unwrap_or_default();
    let kernel = options.string(import::KERNEL_REF)?;
    options.finish()?;
    let kernel = usable_kernel(api, caller, kernel).await?;
    api.require_share(caller, shared, &name).await?;
    Ok(ImportImage { owner: caller.uid, name, shared, kernel, content })
}

/// Parses the arguments of `PullImage`.
pub(super) async fn read_pull(
    api: &Api,
    caller: &Caller,
    reference: &str,
    options: Dict,
) -> Result<PullImage> {
    let catalog_name: Option<Name> = reference.parse().ok();
    let reference: ImageRef = reference.parse().map_err(|error| Error::of(ErrorName::InvalidArgs, &error))?;
    let mut options = Options::new(options);
    let name = options.string(pull::NAME)?.map(|name| parse_name(&name)).transpose()?;
    let kernel = options.string(pull::KERNEL)?;
    let platform = read_platform(options.string(pull::PLATFORM)?)?;
    let credentials = options.file(pull::CREDENTIALS)?;
    let shared = options.boolean(pull::SHARED)?.unwrap_or_default();
    let force = options.boolean(pull::FORCE)?.unwrap_or_default();
    let from = options.string(pull::FROM)?;
    options.finish()?;
    let from = read_pull_source(catalog_name, from.as_deref())?;
    let kernel = usable_kernel(api, caller, kernel).await?;
    let credentials = match credentials {
        Some(file) => api.engine.read_credentials(file)?,
        None => Credentials::Anonymous,
    };
    if shared {
        let details =
            vec![(detail::IMAGE, reference.to_string()), (detail::OBJECT, format!("image {reference}"))];
        api.require(caller, action::IMAGE_MANAGE_SHARED, details).await?;
    }
    let source = Source { reference, platform, credentials };
    let on_conflict = if force { OnConflict::Replace } else { OnConflict::Fail };
    Ok(PullImage { owner: caller.uid, source, from, name, shared, kernel, on_conflict })
}

/// Finds the kernel that the caller names, if it names one.
async fn usable_kernel(api: &Api, caller: &Caller, text: Option<String>) -> Result<Option<Reference>> {
    match text {
        Some(text) => Ok(Some(api.usable_kernel(caller, &text).await?)),
        None => Ok(None),
    }
}

/// Parses the ranges of an image's parts. An image has two documents and at most [`MAX_LAYERS`] layers.
fn read_parts(ranges: &[(u64, u64)]) -> Result<Vec<FileRange>> {
    if ranges.len() > MAX_LAYERS + 2 {
        return Err(Error::invalid_option(format!("an image has at most {MAX_LAYERS} layers")));
    }
    Ok(ranges.iter().map(|(offset, length)| FileRange { offset: *offset, length: Bytes(*length) }).collect())
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

/// Parses the platform of an image. Sandboxes run programs for the host's architecture only.
fn read_platform(text: Option<String>) -> Result<Platform> {
    let host = Platform::of_host(std::env::consts::ARCH);
    let Some(text) = text else { return Ok(host) };
    let platform: Platform = text.parse().map_err(|error| Error::of(ErrorName::InvalidOption, &error))?;
    match platform.runs_with(&host) {
        true => Ok(platform),
        false => Err(Error::invalid_option(format!("sandboxes of this host run {host} and not {platform}"))),
    }
}

/// Parses a name.
pub(super) fn parse_name(text: &str) -> Result<Name> {
    text.parse().map_err(|error| Error::of(ErrorName::InvalidName, &error))
}
