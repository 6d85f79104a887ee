//! What the manager is asked for: its calls' arguments, read and checked.

use std::{collections::HashMap, os::fd::OwnedFd};

use banger_domain::{
    name::Name, net::nic::Nat, ssh::AuthorizedKey, timezone::Timezone, vm::Init, vmm::VmmChoice,
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
    border::Border,
    caller::Caller,
    error::{Error, Result},
    options::{Dict, Options},
    vm::read_start,
};
use crate::{
    engine::request::{CreateVm, ImportImage, Original, Other, PullImage, Whence},
    ports::{images::Part, registry::Source},
};

/// What a label, and all of them, may be.
const MAX_LABELS: usize = 32;
const MAX_LABEL: usize = 256;

/// The files of an import.
pub(super) struct Files(pub(super) HashMap<String, zbus::OwnedFd>);

impl Files {
    /// That of this name, if it is there.
    pub(super) fn optional(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name).map(OwnedFd::from)
    }

    /// That of this name.
    pub(super) fn required(&mut self, name: &str) -> Result<OwnedFd> {
        let missing = || Error::new(ErrorName::InvalidArgs, format!("the file {name} is missing"));
        self.optional(name).ok_or_else(missing)
    }

    /// Refuses what was not asked for.
    pub(super) fn finish(self) -> Result<()> {
        match self.0.into_keys().min() {
            Some(name) => {
                let name: String = name.chars().take(60).collect();
                Err(Error::invalid_option(format!("there is no file {name:?} in this")))
            }
            None => Ok(()),
        }
    }
}

/// A new machine.
pub(super) async fn read_create(
    border: &Border,
    caller: &Caller,
    name: &str,
    options: Dict,
) -> Result<CreateVm> {
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
        (None, Some(_)) => return Err(Error::invalid_option("a rule needs a time zone")),
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
        image: options.string(create::IMAGE)?.map(|text| border.usable_image(caller, &text)).transpose()?,
        kernel: options
            .string(create::KERNEL)?
            .map(|text| border.usable_kernel(caller, &text))
            .transpose()?,
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
        lifetime: border.lifetime(caller, lifetime.as_deref()).await?,
        labels,
        start: start.then_some(how),
    };
    options.finish()?;
    Ok(request)
}

/// An image of files.
pub(super) async fn read_import(
    border: &Border,
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
        (Some(rootfs), _) => Original::Rootfs(rootfs),
        (None, Some(layout)) => Original::Layout(layout, read_parts(&options.ranges(import::PARTS)?)?),
        (None, None) => return Err(Error::new(ErrorName::InvalidArgs, "there is no file")),
    };
    let shared = options.boolean(import::SHARED)?.unwrap_or_default();
    let kernel = options.string(import::KERNEL_REF)?;
    options.finish()?;
    let kernel = kernel.map(|text| border.usable_kernel(caller, &text)).transpose()?;
    border.may_share(caller, shared, &name).await?;
    Ok(ImportImage { owner: caller.uid, name, shared, kernel, content })
}

/// An image of a catalog or of a registry.
pub(super) async fn read_pull(
    border: &Border,
    caller: &Caller,
    reference: &str,
    options: Dict,
) -> Result<PullImage> {
    let called: Option<Name> = reference.parse().ok();
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
    let whence = read_whence(called, from.as_deref())?;
    let kernel = kernel.map(|text| border.usable_kernel(caller, &text)).transpose()?;
    let credentials = match credentials {
        Some(file) => border.engine.read_credentials(file)?,
        None => Credentials::Anonymous,
    };
    if shared {
        let details =
            vec![(detail::IMAGE, reference.to_string()), (detail::OBJECT, format!("image {reference}"))];
        border.require(caller, action::IMAGE_MANAGE_SHARED, details).await?;
    }
    let source = Source { reference, platform, credentials };
    let other = if force { Other::Goes } else { Other::Stays };
    Ok(PullImage { owner: caller.uid, source, whence, name, shared, kernel, other })
}

/// Where the parts of an image are; no image has more of them than the most layers, and two documents.
fn read_parts(ranges: &[(u64, u64)]) -> Result<Vec<Part>> {
    if ranges.len() > MAX_LAYERS + 2 {
        return Err(Error::invalid_option(format!("an image has at most {MAX_LAYERS} layers")));
    }
    Ok(ranges.iter().map(|(offset, length)| Part { offset: *offset, length: Bytes(*length) }).collect())
}

/// Where an image is looked for. What is called as nothing in a catalog can be is in a registry.
fn read_whence(called: Option<Name>, from: Option<&str>) -> Result<Whence> {
    match (called, from) {
        (Some(name), None) => Ok(Whence::CatalogElseRegistry(name)),
        (Some(name), Some(pull::from::CATALOG)) => Ok(Whence::Catalog(name)),
        (None, Some(pull::from::CATALOG)) => Err(Error::invalid_option("this is no name that a catalog has")),
        (None, None) | (_, Some(pull::from::REGISTRY)) => Ok(Whence::Registry),
        (_, Some(_)) => Err(Error::invalid_option("from must be catalog or registry")),
    }
}

/// The platform of an image. Machines run programs for the host's processors and no others.
fn read_platform(text: Option<String>) -> Result<Platform> {
    let host = Platform::of_host(std::env::consts::ARCH);
    let Some(text) = text else { return Ok(host) };
    let platform: Platform = text.parse().map_err(|error| Error::of(ErrorName::InvalidOption, &error))?;
    match platform.runs_with(&host) {
        true => Ok(platform),
        false => Err(Error::invalid_option(format!("sandboxes of this host run {host} and not {platform}"))),
    }
}

/// The name that something gets or has.
pub(super) fn parse_name(text: &str) -> Result<Name> {
    text.parse().map_err(|error| Error::of(ErrorName::InvalidName, &error))
}
