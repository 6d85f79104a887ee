//! Tools that copy between the user's directory on the host and a sandbox.

use std::{ffi::OsStr, sync::Arc, time::Duration};

use banger_copy::Names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, Effect, Found, LONG, Tool};
use crate::{
    command::vm::cp::{Copying, side::GuestPath},
    error::{Error, Result},
    mcp::failure::invalid,
};

/// Result of a copy.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Copied {
    /// What was left out or changed, a sentence each.
    notes: Vec<String>,
}

/// Arguments of `upload`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// A file or directory on the host, relative to the directory that the user has chosen for this server.
    from: String,
    /// Where to put it in the sandbox: an absolute path, or one below the home directory such as `~/src`. It goes into an
    /// existing directory under its own name.
    to: String,
}

impl Tool for Upload {
    const NAME: &'static str = "upload";
    const ABOUT: &'static str = "Copies a file or a directory from the host into a sandbox.";
    const EFFECT: Effect = Effect::Changes;
    const TIME_LIMIT: Duration = LONG;
    const USES_HOST_FILES: bool = true;
    type Output = Copied;

    async fn run(self, call: Call) -> Result<Copied> {
        let from = Arc::new(call.policy().host_dir()?.resolve(&self.from)?);
        from.refuse_link()?;
        if from.kind()?.is_none() {
            return Err(Error::Refused(format!("cannot copy {}: it does not exist", from.shown.display())));
        }
        let found = call.find_for_use(&self.sandbox).await?;
        let to = guest_path(&found, &self.to)?;
        let progress = call.progress();
        let copying = Copying { progress: &progress, follow: false, chown: None, names: Names::NoGit };
        let (mut guest, keep) = (call.guest(&found), Arc::clone(&from));
        let copied = copying.send_path(&mut guest, &from.path(), &to, keep).await;
        let notes = copied.map_err(|error| found.about(from.explain(error)))?;
        Ok(Copied { notes: notes.iter().map(|note| from.readable(note)).collect() })
    }
}

/// Arguments of `download`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Download {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// A file or directory in the sandbox: an absolute path, or one below the home directory such as `~/out`.
    from: String,
    /// Where to put it on the host, relative to the directory that the user has chosen for this server. It goes into an
    /// existing directory under its own name.
    to: String,
}

impl Tool for Download {
    const NAME: &'static str = "download";
    const ABOUT: &'static str =
        "Copies a file or a directory out of a sandbox to the host. Replaces files that exist.";
    const EFFECT: Effect = Effect::Changes;
    const TIME_LIMIT: Duration = LONG;
    const USES_HOST_FILES: bool = true;
    type Output = Copied;

    async fn run(self, call: Call) -> Result<Copied> {
        let to = call.policy().host_dir()?.resolve(&self.to)?;
        to.refuse_link()?;
        let found = call.find_for_use(&self.sandbox).await?;
        let from = guest_path(&found, &self.from)?;
        let (target, directory) = to.destination(from.name()?.map(OsStr::new))?;
        let progress = call.progress();
        let copying = Copying { progress: &progress, follow: false, chown: None, names: Names::NoGit };
        let copied = copying.fetch_into(&mut call.guest(&found), &from, target, Some(directory)).await;
        Ok(Copied { notes: copied.map_err(|error| found.about(error))? })
    }
}

/// A path in a sandbox: absolute, or below a home.
fn guest_path(found: &Found, text: &str) -> Result<GuestPath> {
    let is_rooted = text.starts_with('/') || text == "~" || text.starts_with("~/");
    match is_rooted && !text.contains('\0') {
        true => Ok(GuestPath { sandbox: found.reference.clone(), path: text.to_owned() }),
        false => Err(invalid(format!(
            "cannot use the path {text}: write an absolute path in the sandbox, or one below the home directory such as ~/src"
        ))),
    }
}
