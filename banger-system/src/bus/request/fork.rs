//! The arguments of `Fork`.

use banger_domain::vm::Lifetime;
use banger_proto::bus::option::fork as option;

use super::{Dict, Options, Result, parse_name};
use crate::engine::request::ForkVm;

/// Parses the arguments of `Fork`. Returns the request, and the word for the lifetime, which the request lacks.
pub(in crate::bus) fn read_fork(count: u32, options: Dict) -> Result<(ForkVm, Option<String>)> {
    let mut options = Options::new(options);
    let lifetime = options.string(option::LIFETIME)?;
    let names = options.list(option::NAMES)?;
    let snapshot = options.string(option::SNAPSHOT)?;
    options.finish()?;
    let names = names.iter().map(|name| parse_name(name)).collect::<Result<_>>()?;
    let snapshot = snapshot.map(|name| parse_name(&name)).transpose()?;
    Ok((ForkVm { count, names, snapshot, lifetime: Lifetime::Persistent }, lifetime))
}
