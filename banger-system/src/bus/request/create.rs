//! The arguments of `CreateVM`.

use banger_domain::{
    ssh::AuthorizedKey,
    timezone::Timezone,
    vm::{Init, check_labels},
    vmm::VmmChoice,
};
use banger_proto::{
    bus::{ErrorName, option::create},
    size::Bytes,
};

use super::{
    Api, Caller, Dict, Error, Options, Result, parse_name, ports::read_ports, read_idle, read_reach,
    read_restart, read_start, usable_kernel,
};
use crate::engine::request::CreateVm;

/// Parses the arguments of `CreateVM`.
pub(in crate::bus) async fn read_create(
    api: &Api,
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
    let egress = read_reach(&mut options)?.unwrap_or_default();
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
    check_labels(&labels).map_err(|error| Error::of(ErrorName::InvalidOption, &error))?;
    let ports = read_ports(&mut options)?;
    let idle = read_idle(&mut options)?.flatten();
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
        egress,
        timezone,
        authorized_keys,
        lifetime: api.lifetime(caller, lifetime.as_deref()).await?,
        labels,
        idle,
        restart: read_restart(&mut options)?.unwrap_or_default(),
        autostart: options.boolean(create::AUTOSTART)?.unwrap_or_default(),
        ports,
        start: start.then_some(how),
    };
    options.finish()?;
    Ok(request)
}
