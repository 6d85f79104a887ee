//! Sending what has changed here since a workspace was sent, and nothing else: files are told apart by the
//! names that git gives to their contents.

use std::io::{BufWriter, Write};

use banger_proto::guest::{Request, frame::MAX_DATA, message::Placement};
use tar::Builder;

use super::{
    changed::Differing,
    export::{Tree, some_of},
    files::Root,
    prepare::{Plan, Wanted},
    record::{Kept, save_private},
    sender::{Finished, Sender},
    snapshot::SENT,
    source::{Repository, Shown},
    stamps::Stamps,
    tooling,
};
use crate::{
    age,
    error::{Error, Result},
    guest::{Guest, from_io},
};

/// What has changed here.
#[derive(Debug)]
pub struct Changes {
    /// With the files that have another content or mode, and no others.
    plan: Plan,
    gone: Vec<Vec<u8>>,
    /// Everything that was sent before.
    sent: Tree,
}

impl Changes {
    /// Looks at what differs from what was sent.
    pub fn find(kept: &Kept, differing: Differing) -> Result<Self> {
        let plan = Plan::make(Repository::open(&kept.record.source)?, Wanted::of(&kept.record))?;
        Ok(Self { plan: plan.only(differing.changed)?, gone: differing.gone, sent: kept.sent()? })
    }
}

/// Sends what has changed. What was changed in the sandbox, too, is not overwritten.
pub async fn send(guest: &mut Guest, mut kept: Kept, changes: Changes) -> Result<()> {
    let head = changes.plan.repository.head.commit.clone();
    if !(changes.plan.files.is_empty() && changes.gone.is_empty()) {
        check_guest(guest, &kept, &changes).await?;
        remove(guest, &kept, changes.gone.clone()).await?;
        put(guest, &kept, changes).await?;
    }
    if let Some(user) = kept.record.user.clone() {
        tooling::give(guest, &kept.record.guest_path, &user).await?;
    }
    kept.record.commit = head;
    kept.record.sent_at = age::now();
    kept.save()
}

/// What is gone goes first: a directory may stand where a file was, and a file where a directory was.
async fn remove(guest: &mut Guest, kept: &Kept, gone: Vec<Vec<u8>>) -> Result<()> {
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

async fn put(guest: &mut Guest, kept: &Kept, changes: Changes) -> Result<()> {
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

/// Adds what was sent to what is known of the files that were sent before.
fn remember(kept: &Kept, before: &str, plan: &Plan, gone: &[Vec<u8>], finished: Finished) -> Result<()> {
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

/// Each file that is to be sent must be in the sandbox as it was sent, or as it is here now.
async fn check_guest(guest: &mut Guest, kept: &Kept, changes: &Changes) -> Result<()> {
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
            .map_err(|source| Error::io(format!("read {}", Shown(&name)), source))?
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
        some_of(&both)
    ))
    .advise(
        "`banger vm workspace export NAME --apply --merge` brings back the work in the sandbox first; \
             `banger vm exec --no-auto-prepare NAME` leaves the sandbox as it is.",
    ))
}

/// That files here are not as they were sent, in one sentence with what to type; none where all are.
pub fn warning(kept: &Kept, differing: &Differing, reference: &str) -> Option<String> {
    let record = &kept.record;
    let names: Vec<Vec<u8>> = differing.names().cloned().collect();
    let count = match names.len() {
        0 => return None,
        1 => "1 file differs".to_owned(),
        count => format!("{count} files differ"),
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
        some_of(&names),
    ))
}
