//! The options for creating a sandbox.

use std::{collections::HashMap, time::Duration};

use banger_proto::bus::{
    ErrorName,
    option::{create, pull as option, vmm},
    proxy::Options,
};
use clap::Args;
use zbus::{OwnedObjectPath, Variant};

use super::{
    numbers::positive,
    size_args::{SizeArgs, with_default},
};
use crate::{
    client::{
        bus::Bus,
        job::Jobs,
        pull::{self, PullPolicy},
        service::id_of,
    },
    error::{Error, Result},
    ssh::keys,
    ui::{progress::Progress, signals::Listener},
    user::{
        dirs::UserDirs,
        settings::Settings,
        timezone::{self, Timezone},
    },
};

/// The options of a command that creates a sandbox.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "The sandbox", mut_args = with_default)]
pub struct VmArgs {
    /// Name [default: a generated one such as calm-otter]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Image to clone: a name from `banger image list` or a catalog, or a reference such as alpine:3.20
    /// [default: the service's]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// When to pull the image, and a missing default kernel, from a catalog or a registry
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: PullPolicy,
    /// Kernel to boot [default: the image's, else the service's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Give the sandbox internet access (NAT)
    #[arg(long)]
    nat: bool,
    /// Add a label; `banger vm list --filter` can select by labels
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// VMM to run it under [default: the best one that works]
    #[arg(long, value_name = "VMM", value_parser = [vmm::AUTO, vmm::FIRECRACKER, vmm::QEMU])]
    vmm: Option<String>,
    /// Time zone: a name such as Europe/Berlin, `host`, or `image` for the image's own [default: your setting
    /// `timezone`, else the host's]
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
    /// How long the guest may take to become ready [default: the service's]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    ready_timeout: Option<u32>,
}

/// Returns the user's public keys. Without any, only ssh does not work.
fn authorized_keys() -> Option<Vec<String>> {
    let keys = UserDirs::of_caller().and_then(|dirs| keys::public(&dirs));
    keys.map_err(|error| error.print(Some("nobody can log in to this sandbox with ssh"))).ok()
}

/// Pulls images and kernels that are missing on the host.
struct Pulls<'a> {
    bus: &'a Bus,
    jobs: &'a Jobs,
    progress: &'a Progress,
    listener: &'a mut Listener,
}

impl Pulls<'_> {
    /// Pulls an image, or the default image. Returns its id.
    async fn image(&mut self, image: Option<&str>) -> Result<String> {
        let default;
        let (reference, options) = match image {
            Some(image) => (image, Options::new()),
            None => {
                default = self.bus.manager().await?.text("DefaultImage").to_owned();
                (default.as_str(), of_catalog(&default))
            }
        };
        let Self { bus, jobs, progress, listener } = self;
        let pulled = pull::image(bus, jobs, progress, listener, reference, options).await;
        let (pulled, _) = pulled.map_err(|error| match image {
            Some(image) => explain(image, error),
            None => error,
        })?;
        Ok(id_of(&pulled))
    }

    /// Pulls the default kernel. Returns its id.
    async fn default_kernel(&mut self) -> Result<String> {
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

/// Returns whether an image is given by its id.
fn is_id(image: Option<&Variant<'_>>) -> bool {
    let is_id = |text: &str| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(image, Some(Variant::Str(text)) if is_id(text))
}

/// Explains a failed pull: the user may not have meant a registry.
fn explain(image: &str, error: Error) -> Error {
    if image.contains(['/', ':']) {
        return error;
    }
    let hint = error.hint().map_or_else(|| ".".to_owned(), |hint| format!("; {hint}"));
    error.with_hint(format!("this host has no image {image}: `banger image list` shows what it has{hint}"))
}

/// Parses a key and a value, which may be empty.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key.is_empty() {
        true => Err("a label needs a key".to_owned()),
        false => Ok((key.to_owned(), value.to_owned())),
    }
}

impl VmArgs {
    /// Creates the sandbox, and pulls its image first if necessary. Returns its object and the job that completes it.
    pub async fn create(
        &self,
        bus: &Bus,
        jobs: &Jobs,
        progress: &Progress,
        listener: &mut Listener,
        more: Options<'_>,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath)> {
        let mut options = self.options();
        options.extend(more);
        if let Some(zone) = self.timezone()? {
            options.insert(create::TIMEZONE, Variant::from(zone.name));
            if let Some(rule) = zone.rule {
                options.insert(create::TIMEZONE_RULE, Variant::from(rule));
            }
        }
        if let Some(keys) = authorized_keys() {
            options.insert(create::SSH_AUTHORIZED_KEYS, Variant::from(keys));
        }
        let name = self.name.as_deref().unwrap_or_default();
        let mut pulls = Pulls { bus, jobs, progress, listener };
        if self.pull == PullPolicy::Always && self.image.is_some() {
            options.insert(create::IMAGE, Variant::from(pulls.image(self.image.as_deref()).await?));
        }
        loop {
            let refused = match bus.create_vm(name, &options).await {
                Err(error) if self.pull != PullPolicy::Never => error,
                created => return created.map_err(|error| self.add_hint(error)),
            };
            // The pulled objects are given by id from now on, so that nothing is pulled twice.
            match refused.name() {
                Some(ErrorName::NoSuchImage) if !is_id(options.get(create::IMAGE)) => {
                    let image = pulls.image(self.image.as_deref()).await;
                    let image = image.map_err(|error| self.not_pulled(refused, error))?;
                    options.insert(create::IMAGE, Variant::from(image));
                }
                Some(ErrorName::NoSuchKernel) if !options.contains_key(create::KERNEL) => {
                    let kernel = pulls.default_kernel().await;
                    let kernel = kernel.map_err(|error| self.not_pulled(refused, error))?;
                    options.insert(create::KERNEL, Variant::from(kernel));
                }
                _ => return Err(self.add_hint(refused)),
            }
        }
    }

    fn timezone(&self) -> Result<Option<Timezone>> {
        match &self.timezone {
            Some(wish) => timezone::from_setting(wish),
            None => timezone::from_setting(&Settings::of_caller()?.timezone),
        }
    }

    /// Returns the error for a missing object that could not be pulled either.
    fn not_pulled(&self, missing: Error, error: Error) -> Error {
        let is_nowhere = matches!(error.name(), Some(ErrorName::NoSuchImage | ErrorName::NoSuchKernel));
        // If the user named nothing, "in no catalog" is not helpful.
        if is_nowhere { self.add_hint(missing) } else { error }
    }

    /// Returns the same options with this image, if none was given.
    pub fn or_image(&self, image: Option<&str>) -> Self {
        let image = self.image.clone().or_else(|| image.map(str::to_owned));
        Self { image, ..self.clone() }
    }

    /// Returns the image that was given.
    pub fn image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// Returns whether the sandbox gets internet access.
    pub fn nat(&self) -> bool {
        self.nat
    }

    fn options(&self) -> Options<'_> {
        let mut options: Options<'_> = self.sizes.options();
        if let Some(image) = &self.image {
            options.insert(create::IMAGE, Variant::from(image.as_str()));
        }
        if let Some(kernel) = &self.kernel {
            options.insert(create::KERNEL, Variant::from(kernel.as_str()));
        }
        if self.nat {
            options.insert(create::NAT, Variant::from(true));
        }
        if !self.label.is_empty() {
            let labels: HashMap<&str, &str> =
                self.label.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            options.insert(create::LABELS, Variant::from(labels));
        }
        if let Some(vmm) = &self.vmm {
            options.insert(create::VMM, Variant::from(vmm.as_str()));
        }
        if let Some(seconds) = self.ready_timeout {
            let timeout = Duration::from_secs(u64::from(seconds)).as_micros();
            options.insert(create::READY_TIMEOUT, Variant::from(u64::try_from(timeout).unwrap_or(u64::MAX)));
        }
        options
    }

    /// Adds a hint for a missing default image or kernel.
    fn add_hint(&self, error: Error) -> Error {
        match error.name() {
            Some(ErrorName::NoSuchImage) if self.image.is_none() && self.pull == PullPolicy::Never => error.with_hint(
                "the default image is not on this host, and `--pull never` forbids pulling it: leave that \
                 out, or choose one of `banger image list` with `--image NAME`.",
            ),
            Some(ErrorName::NoSuchImage) if self.image.is_none() => error.with_hint(
                "the default image is not on this host, and no catalog has it: `banger image register --name \
                 NAME --rootfs FILE` adds an image, `--image alpine` pulls one from a registry, and `banger \
                 image list` lists the images on this host.",
            ),
            Some(ErrorName::DiskTooSmall) => error.with_hint(
                "`banger image show IMAGE` shows the size of an image; without `--root-size`, the system disk has that.",
            ),
            Some(ErrorName::NoSuchKernel) if self.kernel.is_none() => error.with_hint(
                "the default kernel is not on this host, and no catalog has it: `banger kernel import --name \
                 NAME --vmlinuz FILE --modules DIRECTORY` adds a kernel, and `--kernel NAME` chooses another \
                 one of `banger kernel list`.",
            ),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;
    use crate::ui::wording::of_service;

    #[derive(Debug, Parser)]
    struct Test {
        #[command(flatten)]
        vm: VmArgs,
    }

    fn parse(line: &str) -> Result<VmArgs, String> {
        let line = format!("test {line}");
        let parsed = Test::try_parse_from(line.split_whitespace());
        parsed.map(|test| test.vm).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_become_options_of_the_right_type() {
        let vm = parse(
            "--image debian --kernel k --vcpu 2 --memory 512MiB --disk-size 8G --root-size 20G --vmm qemu \
             --ready-timeout 90",
        );
        let vm = vm.unwrap();
        let expect = Options::from([
            ("image", Variant::from("debian")),
            ("kernel", Variant::from("k")),
            ("vcpus", Variant::from(2u32)),
            ("memory", Variant::from(512u64 << 20)),
            ("disk-size", Variant::from(8u64 << 30)),
            ("root-size", Variant::from(20u64 << 30)),
            ("vmm", Variant::from("qemu")),
            ("ready-timeout-usec", Variant::from(90_000_000u64)),
        ]);
        assert_eq!(vm.options(), expect);
        assert_eq!(parse("").unwrap().options(), Options::new());
        assert_eq!(parse("--disk 20G").unwrap().options(), parse("--root-size 20G").unwrap().options());
    }

    #[test]
    fn impossible_sizes_are_refused_before_the_service_is_asked() {
        for line in [
            "--vcpu 0",
            "--vcpu -1",
            "--memory 0",
            "--memory lots",
            "--disk-size 4parsecs",
            "--root-size 0",
            "--ready-timeout 0",
            "--vmm bochs",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_system_disk_smaller_than_its_image_is_explained() {
        let refused = of_service(ErrorName::DiskTooSmall);
        let hint = parse("--root-size 1G").unwrap().add_hint(refused).hint().unwrap();
        assert!(hint.contains("`banger image show IMAGE`"), "{hint}");
        let other = of_service(ErrorName::InvalidOption);
        assert!(parse("--root-size 1G").unwrap().add_hint(other).hint().is_none());
    }

    #[test]
    fn a_default_image_that_is_missing_is_explained() {
        let no_image = || Error::named("dev.banger.Error.NoSuchImage", "there is no image debian-bookworm");
        let hint = |line: &str| parse(line).unwrap().add_hint(no_image()).hint().unwrap();
        assert!(hint("").contains("default image"), "{}", hint(""));
        assert!(!hint("--image x").contains("default image"));
    }

    #[test]
    fn hints_about_missing_images_and_kernels() {
        use crate::ui::wording::{check, shown};

        let hint = |line: &'static str, name| (line, parse(line).unwrap().add_hint(of_service(name)));
        let refused = of_service(ErrorName::RegistryAuthRequired);
        let errors = [
            hint("", ErrorName::NoSuchImage),
            hint("--pull never", ErrorName::NoSuchImage),
            hint("--image x", ErrorName::NoSuchImage),
            hint("--memory 1G", ErrorName::NoSuchKernel),
            ("--image debain", explain("debain", refused)),
        ];
        check("hints_about_missing_images", &shown(errors));
    }
}
