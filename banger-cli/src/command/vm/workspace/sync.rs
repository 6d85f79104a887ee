//! `banger vm workspace sync`.

use banger_proto::count::counted;
use clap::Args;
use serde_json::{Value, json};

use super::stored;
use crate::{
    command::vm::workspace_args::guest_path,
    error::{Error, Result},
    guest::agent::Guest,
    ui::{
        output,
        progress::{Progress, ProgressArgs},
    },
    workspace::{
        export::first_names,
        record::{StoredWorkspace, reference},
        sync::{self, OnConflict, Sent},
        watch::Watcher,
    },
};

/// Send what has changed on the host into a workspace
///
/// Sends the files of the repository whose contents or modes have changed since they were sent, and removes those that
/// are gone. A file that was changed in the sandbox as well is not overwritten. Git's metadata in the sandbox stays as it
/// is.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm workspace sync web
  banger vm workspace sync --watch web     whenever a file is saved, until you press Ctrl-C
  banger vm workspace sync --force web     also files that were changed in the sandbox

`banger vm exec --auto-prepare` does the same before a command.")]
pub struct Sync {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Send to the workspace at this path in the sandbox [default: the one that was sent last]
    #[arg(long, value_name = "PATH", value_parser = guest_path)]
    guest_path: Option<String>,
    /// Continue to send changes as they are made
    #[arg(short, long)]
    watch: bool,
    /// Overwrite files that were changed in the sandbox, too
    #[arg(short, long)]
    force: bool,
    /// Print a JSON object about what was sent, one line each time
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Sync {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let mut guest = Guest::of(&self.sandbox).await?;
        let kept = self.kept(&guest)?;
        self.check(&kept)?;
        if self.watch {
            return match self.keep_sending(&mut guest, &kept.record.guest_path, &progress).await {
                // The normal way to end.
                Err(error) if error.is_interrupted() => Ok(0),
                ended => ended.map(|never| match never {}),
            };
        }
        let sent = self.send(&mut guest, kept.clone()).await?;
        self.print(&kept, &sent)?;
        if sent.is_empty() {
            progress.note("nothing has changed on the host.");
        }
        Ok(0)
    }

    fn reference(&self) -> String {
        reference(&self.sandbox, self.guest_path.as_deref())
    }

    fn kept(&self, guest: &Guest) -> Result<StoredWorkspace> {
        stored(guest, &self.sandbox, self.guest_path.as_deref())
    }

    async fn send(&self, guest: &mut Guest, kept: StoredWorkspace) -> Result<Sent> {
        self.check(&kept)?;
        let on_conflict = if self.force { OnConflict::Replace } else { OnConflict::Fail };
        sync::update(guest, kept, on_conflict).await.map_err(|error| error.about(&self.reference()))
    }

    /// Checks that the workspace has the files of the work tree. It may have been sent once more since.
    fn check(&self, kept: &StoredWorkspace) -> Result<()> {
        if kept.record.from_commit {
            return Err(Error::Refused(format!(
                "cannot send changes of the work tree: {} has the files of a revision",
                self.reference()
            ))
            .with_hint(format!(
                "`banger vm workspace prepare --force {}` sends the work tree.",
                self.reference()
            )));
        }
        Ok(())
    }

    /// Sends changes to this workspace until a signal ends that, or the sandbox. One that is sent meanwhile to another path
    /// is not this one.
    async fn keep_sending(
        &self,
        guest: &mut Guest,
        guest_path: &str,
        progress: &Progress,
    ) -> Result<std::convert::Infallible> {
        let mut watcher = Watcher::new()?;
        let mut told = None;
        let find = |guest: &Guest| stored(guest, &self.sandbox, Some(guest_path));
        progress.note(&format!("watching {}; press Ctrl-C to stop.", find(guest)?.record.source.display()));
        loop {
            let kept = find(guest)?;
            watcher.cover(&kept)?;
            match self.send(guest, kept.clone()).await {
                Ok(sent) => {
                    told = None;
                    if !sent.is_empty() {
                        self.print(&kept, &sent)?;
                    }
                }
                Err(error) if can_be_mended(&error) => {
                    let text = error.text(None);
                    if told.as_ref() != Some(&text) {
                        progress.suspend(|| error.print(None));
                    }
                    told = Some(text);
                }
                Err(error) => return Err(error),
            }
            // A new directory may have got files before it was watched.
            if !watcher.cover(&find(guest)?)? {
                guest.unless_ended(watcher.changed()).await?;
            }
        }
    }

    fn print(&self, kept: &StoredWorkspace, sent: &Sent) -> Result<()> {
        match self.json {
            true => output::text(&format!("{}\n", json_of(kept, sent))),
            false => output::text(&lines(sent)),
        }
    }
}

/// Returns whether another change of files can mend this: a conflict, a file that was just being written, or a merge.
fn can_be_mended(error: &Error) -> bool {
    matches!(error.bare(), Error::Refused(_) | Error::Io { .. })
}

fn lines(sent: &Sent) -> String {
    let line = |names: &[Vec<u8>], verb: &str| match names.len() {
        0 => String::new(),
        count => format!("{verb} {}: {}\n", counted(count, "file"), first_names(names)),
    };
    line(&sent.files, "sent") + &line(&sent.removed, "removed")
}

fn json_of(kept: &StoredWorkspace, sent: &Sent) -> Value {
    let names = |names: &[Vec<u8>]| names.iter().map(|name| String::from_utf8_lossy(name)).collect::<Value>();
    json!({
        "guest_path": kept.record.guest_path,
        "source": kept.record.source,
        "sent": names(&sent.files),
        "removed": names(&sent.removed),
        "bytes": sent.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_what_was_sent() {
        let names = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect();
        for (files, removed, expect) in [
            (&[][..], &[][..], ""),
            (&["a"], &[], "sent 1 file: a\n"),
            (&["a", "b\n"], &["c"], "sent 2 files: a, \"b\\n\"\nremoved 1 file: c\n"),
        ] {
            let sent = Sent { files: names(files), removed: names(removed), bytes: 0 };
            assert_eq!(lines(&sent), expect);
        }
    }
}
