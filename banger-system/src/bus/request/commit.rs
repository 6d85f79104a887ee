//! The arguments of `Commit`.

use banger_image::oci::config::ConfigChange;
use banger_proto::bus::option::commit as option;

use super::{Caller, Dict, Options, Result, parse_name};
use crate::engine::request::{CommitVm, OnConflict};

/// Parses the arguments of `Commit`.
pub(in crate::bus) fn read_commit(caller: &Caller, name: &str, options: Dict) -> Result<CommitVm> {
    let name = parse_name(name)?;
    let mut options = Options::new(options);
    let config = ConfigChange {
        env: options.optional_list(option::ENV)?,
        user: options.string(option::USER)?,
        working_dir: options.string(option::WORKING_DIR)?,
        entrypoint: options.optional_list(option::ENTRYPOINT)?,
        cmd: options.optional_list(option::CMD)?,
        stop_signal: options.string(option::STOP_SIGNAL)?,
        exposed_ports: options.optional_list(option::EXPOSED_PORTS)?,
        labels: options.strings(option::LABELS)?,
    };
    let on_conflict = match options.boolean(option::FORCE)?.unwrap_or_default() {
        true => OnConflict::Replace,
        false => OnConflict::Fail,
    };
    options.finish()?;
    Ok(CommitVm { owner: caller.uid, name, config, on_conflict })
}
