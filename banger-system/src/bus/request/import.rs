//! The arguments of `ImportImage` and `ImportKernel`.

use std::{collections::HashMap, os::fd::OwnedFd};

use banger_image::oci::manifest::MAX_LAYERS;
use banger_proto::{
    bus::{ErrorName, option::import},
    size::Bytes,
};

use super::{Api, Caller, Dict, Error, Options, Result, parse_name, read_platform, usable_kernel};
use crate::{
    engine::request::{ImportImage, ImportKernel, ImportSource},
    ports::image_files::FileRange,
};

/// Parses the arguments of `ImportImage`.
pub(in crate::bus) async fn read_image_import(
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
        (None, Some(layout)) => {
            let parts = read_parts(&options.ranges(import::PARTS)?)?;
            ImportSource::Layout(layout, parts, read_platform(options.string(import::PLATFORM)?)?)
        }
        (None, None) => return Err(Error::new(ErrorName::InvalidArgs, "no file was passed")),
    };
    let shared = options.boolean(import::SHARED)?.unwrap_or_default();
    let kernel = options.string(import::KERNEL_REF)?;
    options.finish()?;
    let kernel = usable_kernel(api, caller, kernel).await?;
    api.require_share(caller, shared, &name).await?;
    Ok(ImportImage { owner: caller.uid, name, shared, kernel, content })
}

/// Parses the arguments of `ImportKernel`.
pub(in crate::bus) async fn read_kernel_import(
    api: &Api,
    caller: &Caller,
    name: &str,
    files: HashMap<String, zbus::OwnedFd>,
    options: Dict,
) -> Result<ImportKernel> {
    let name = parse_name(name)?;
    let mut files = Files(files);
    let vmlinuz = files.required(import::FILE_KERNEL)?;
    let modules = files.optional(import::FILE_MODULES);
    files.finish()?;
    let mut options = Options::new(options);
    let shared = options.boolean(import::SHARED)?.unwrap_or_default();
    options.finish()?;
    api.require_share(caller, shared, &name).await?;
    Ok(ImportKernel { owner: caller.uid, name, shared, vmlinuz, modules })
}

/// Parses the ranges of an image's parts. An image has two documents and at most [`MAX_LAYERS`] layers.
fn read_parts(ranges: &[(u64, u64)]) -> Result<Vec<FileRange>> {
    if ranges.len() > MAX_LAYERS + 2 {
        return Err(Error::invalid_option(format!("an image has at most {MAX_LAYERS} layers")));
    }
    Ok(ranges.iter().map(|(offset, length)| FileRange { offset: *offset, length: Bytes(*length) }).collect())
}

/// The files of an import.
struct Files(HashMap<String, zbus::OwnedFd>);

impl Files {
    /// Returns the file with this name, if it is there.
    fn optional(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name).map(OwnedFd::from)
    }

    /// Returns the file with this name, which must be there.
    fn required(&mut self, name: &str) -> Result<OwnedFd> {
        let missing = || Error::new(ErrorName::InvalidArgs, format!("the file {name} is missing"));
        self.optional(name).ok_or_else(missing)
    }

    /// Checks that all files were used.
    fn finish(self) -> Result<()> {
        match self.0.into_keys().min() {
            Some(name) => {
                let name: String = name.chars().take(60).collect();
                Err(Error::invalid_option(format!("unknown file {name:?}")))
            }
            None => Ok(()),
        }
    }
}
