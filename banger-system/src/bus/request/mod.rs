//! Parses and checks the arguments of the manager's methods.

mod commit;
mod create;
mod fork;
mod import;
mod ports;
mod pull;

use std::time::Duration;

use banger_domain::{
    egress::Egress,
    idle::IdlePolicy,
    name::{Name, Reference},
};
use banger_image::oci::platform::Platform;
use banger_proto::bus::{ErrorName, option};

pub(super) use self::{
    commit::read_commit,
    create::read_create,
    fork::read_fork,
    import::{read_image_import, read_kernel_import},
    ports::{needs_authorisation, read_port, read_protocol},
    pull::{read_image_pull, read_kernel_pull},
};
use super::{
    api::Api,
    caller::Caller,
    error::{Error, Result},
    options::{Dict, Options},
    vm::{read_restart, read_start},
};

/// Parses a name.
pub(super) fn parse_name(text: &str) -> Result<Name> {
    text.parse().map_err(|error| Error::of(ErrorName::InvalidName, &error))
}

/// Parses the words of an egress policy.
pub(super) fn read_egress(words: &[String]) -> Result<Egress> {
    Egress::parse(words).map_err(|error| Error::of(ErrorName::InvalidOption, &error))
}

/// Reads what a sandbox may reach beyond the host, from `nat` or `egress`. `None` if neither is there.
pub(super) fn read_reach(options: &mut Options) -> Result<Option<Egress>> {
    use option::create::{EGRESS, NAT};
    Ok(match (options.boolean(NAT)?, options.optional_list(EGRESS)?) {
        (Some(true), Some(_)) => return Err(Error::invalid_option("nat and egress exclude each other")),
        (_, Some(words)) => Some(read_egress(&words)?),
        (Some(true), None) => Some(Egress::Everything),
        (Some(false), None) => Some(Egress::Nothing),
        (None, None) => None,
    })
}

/// Reads what happens to a sandbox that idles: a policy, or none with an empty word.
pub(super) fn read_idle(options: &mut Options) -> Result<Option<Option<IdlePolicy>>> {
    let (action, after) =
        (options.string(option::create::IDLE_ACTION)?, options.number(option::create::IDLE_AFTER)?);
    let (action, after) = match (action, after) {
        (None, None) => return Ok(None),
        (Some(none), None) if none.is_empty() => return Ok(Some(None)),
        (Some(action), Some(after)) => (action, Duration::from_micros(after)),
        _ => {
            let why =
                format!("{} and {} need each other", option::create::IDLE_ACTION, option::create::IDLE_AFTER);
            return Err(Error::invalid_option(why));
        }
    };
    let policy = IdlePolicy::new(&action, after);
    policy.map(|policy| Some(Some(policy))).map_err(|error| Error::of(ErrorName::InvalidOption, &error))
}

/// Finds the kernel that the caller names, if it names one.
async fn usable_kernel(api: &Api, caller: &Caller, text: Option<String>) -> Result<Option<Reference>> {
    match text {
        Some(text) => Ok(Some(api.usable_kernel(caller, &text).await?)),
        None => Ok(None),
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
