//! Sends the files that have changed on the host since a workspace was sent, and no others. Files are compared by
//! git's object names.

use std::io::{BufWriter, Write};

use banger_proto::{
    count::counted,
    guest::{Request, frame::MAX_DATA, message::Placement},
};
use tar::Builder;

use super::{
    changed::ChangedFiles,
    export::{Tree, first_names},
    files::Root,
    prepare::{Plan, SendOptions},
    record::{StoredWorkspace, save_private},
    sender::{Finished, Sender},
    snapshot::SENT,
    source::{DisplayPath, Repository},
    stamps::Stamps,
    tooling,
};
use crate::{
    error::{Error, Result},
    guest::agent::{Guest, from_io},
    ui::age,
};

/// What happens to files that were changed in the sandbox, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    /// They stay, and nothing is sent.
    Fail,
    /// They are overwritten.
    Replace,
}

/// What was sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Files with another content or mode.
    pub files: Vec<Vec<u8>>,
    /// Files that are gone.
    pub removed: Vec<Vec<u8>>,
    /// The bytes of the files.
    pub bytes: u64,
}

impl Sent {
    /// Returns whether there was nothing to send.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.removed.is_empty()
    }
}

/// Sends what has changed on the host.
pub async fn update(guest: &mut Guest, kept: StoredWorkspace, on_conflict: OnConflict) -> Result<Sent> {
    let differing = ChangedFiles::find(&kept)?;
    if differing.is_empty() && Repository::head_now(&kept.record.source)? == kept.record.commit {
        return Ok(Sent::default());
    }
    let changes = Changes::find(&kept, differing)?;
    let sent = Sent {
        files: changes.plan.files.iter().map(|file| file.path.clone()).collect(),
        removed: changes.gone.clone(),
        bytes: changes.plan.bytes(),
    };
    send(guest, kept, changes, on_conflict).await.map(|()| sent)
}

/// Changes on the host.
#[derive(Debug)]
struct Changes {
    /// A plan with only the files that have another content or mode.
    plan: Plan,
    gone: Vec<Vec<u8>>,
    /// Everything that was sent before.
    sent: Tree,
}

impl Changes {
    /// Plans to send the differing files.
    fn find(kept: &StoredWorkspace, differing: ChangedFiles) -> Result<Self> {
        let plan = Plan::make(Repository::open(&kept.record.source)?, SendOptions::of(&kept.record))?;
        Ok(Self { plan: plan.only(differing.changed)?, gone: differing.gone, sent: kept.sent()? })
    }
}

/// Sends the changes: all of them, or none because of a conflict.
async fn send(
    guest: &mut Guest,
    mut kept: StoredWorkspace,
    changes: Changes,
    on_conflict: OnConflict,
) -> Result<()> {
    let head = changes.plan.repository.head.commit.clone();
    if !(changes.plan.files.is_empty() && changes.gone.is_empty()) {
        if on_conflict == OnConflict::Fail {
            check_guest(guest, &kept, &changes).await?;
        }
        remove(guest, &kept, changes.gone.clone()).await?;
        put(guest, &kept, changes).await?;
    }
    if let Some(user) = kept.record.user.clone() {
        tooling::change_owner(guest, &kept.record.guest_path, &user).await?;
    }
    kept.update(|record| {
        record.commit = head;
        record.sent_at = age::now();
    })
}

/// Removals come first: a directory and a file may have exchanged places.
async fn remove(guest: &mut Guest, kept: &StoredWorkspace, gone: Vec<Vec<u8>>) -> Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    let request = Request::Remove { directory: kept.record.guest_path.clone() };
    guest
        .call(request, move |call| {
            call.send_names(&gone)?;
            call.finish()
        })
        .await
}

async fn put(guest: &mut Guest, kept: &StoredWorkspace, changes: Changes) -> Result<()> {
    let request = Request::PutTar { directory: kept.record.guest_path.clone(), placement: Placement::Merge };
    let kept = kept.clone();
    guest
        .call(request, move |call| {
            let Changes { plan, gone, .. } = changes;
            let before = kept.snapshot().commit(SENT)?;
            let mut archive = Builder::new(BufWriter::with_capacity(MAX_DATA, &mut *call));
            let mut sender = Sender::new(&plan, &kept.snapshot(), Default::default())?.amending();
            gone.iter().for_each(|path| sender.forget(path.clone()));
            for file in &plan.files {
                sender.send(&mut archive, file)?;
            }
            archive.into_inner().and_then(|mut writer| writer.flush()).map_err(from_io)?;
            call.end_input()?;
            call.finish()?;
            remember(&kept, &before, &plan, &gone, sender.finish()?)
        })
        .await
}

/// Adds what was sent to the record.
fn remember(
    kept: &StoredWorkspace,
    before: &str,
    plan: &Plan,
    gone: &[Vec<u8>],
    finished: Finished,
) -> Result<()> {
    let Finished { sent, private: more, stamps: newer } = finished;
    let mut private = kept.private()?;
    private.retain(|path, _| !sent.contains_key(path) && !gone.contains(path));
    private.extend(more);
    save_private(&kept.directory, &private)?;
    // Without them the next comparison reads every file.
    if let Some(mut stamps) = Stamps::load(&kept.directory, before) {
        stamps.extend(newer);
        stamps.extend(plan.index_stamp.clone());
        gone.iter().for_each(|path| stamps.forget(path));
        stamps.save(&kept.directory, &kept.snapshot().commit(SENT)?)?;
    }
    Ok(())
}

/// Checks that each file to send is in the sandbox as it was sent, or as it is on the host now.
async fn check_guest(guest: &mut Guest, kept: &StoredWorkspace, changes: &Changes) -> Result<()> {
    let names: Vec<Vec<u8>> =
        changes.plan.files.iter().map(|file| file.path.clone()).chain(changes.gone.iter().cloned()).collect();
    let algorithm = kept.record.algorithm;
    let there = guest.digests(&kept.record.guest_path, algorithm, names.clone()).await?;
    let root = Root::open(&changes.plan.repository.root)?;
    let mut both = Vec::new();
    for (name, there) in names.into_iter().zip(there) {
        let sent = changes.sent.get(&name).map(|(_, id)| id);
        let here = root
            .digest(&name, algorithm)
            .map_err(|source| Error::io(format!("read {}", DisplayPath(&name)), source))?
            .map(|(_, id)| id);
        if there.as_ref() != sent && there != here {
            both.push(name);
        }
    }
    if both.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "cannot send changes: the same files have changed on the host and in the sandbox: {}",
        first_names(&both)
    ))
    .with_hint(
        "`banger vm workspace export NAME --apply --merge` brings back the work in the sandbox first; \
             `banger vm workspace sync --force NAME` overwrites it; `banger vm exec --no-auto-prepare NAME` leaves \
             the sandbox as it is.",
    ))
}

/// Returns a warning about files that differ from what was sent, with the command to type; `None` if there are none.
pub fn warning(kept: &StoredWorkspace, differing: &ChangedFiles, reference: &str) -> Option<String> {
    let record = &kept.record;
    let names: Vec<Vec<u8>> = differing.names().cloned().collect();
    let count = match names.len() {
        0 => return None,
        count => format!("{} {}", counted(count, "file"), if count == 1 { "differs" } else { "differ" }),
    };
    let short = |commit: &Option<String>| match commit {
        Some(commit) => commit.get(..12).unwrap_or(commit).to_owned(),
        None => "nothing".to_owned(),
    };
    let moved = match Repository::head_now(&record.source) {
        Ok(now) if now != record.commit => {
            format!("HEAD has moved from {} to {}, and ", short(&record.commit), short(&now))
        }
        _ => String::new(),
    };
    Some(format!(
        "{} has changed since it was sent: {moved}{count}: {}; `banger vm exec --auto-prepare {reference}` \
         sends what has changed.",
        record.source.display(),
        first_names(&names),
    ))
}
