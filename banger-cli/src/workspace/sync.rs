//! Sending what has changed here since a workspace was sent, and nothing else: files are told apart by the
//! names that git gives to their contents.

use std::io::{BufWriter, Write};

use banger_proto::guest::{Request, frame::MAX_DATA, message::Placement};
use tar::Builder;

use super::{
    export::{Tree, some_of, tree},
    files::Root,
    prepare::{Plan, Planned, Wanted},
    record::Kept,
    sender::Sender,
    snapshot::SENT,
    source::{Repository, Shown},
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
    plan: Plan,
    files: Vec<Planned>,
    gone: Vec<Vec<u8>>,
    sent: Tree,
}

impl Changes {
    /// Looks what has changed.
    pub fn find(kept: &Kept) -> Result<Self> {
        let record = &kept.record;
        let repository = Repository::open(&record.source)?;
        let wanted =
            Wanted { mode: record.mode, include_untracked: record.untracked, branch: None, from: None };
        let plan = Plan::make(repository, wanted)?;
        let snapshot = kept.snapshot();
        let sent = tree(&snapshot, &snapshot.commit(SENT)?)?;
        let root = Root::open(&plan.repository.root)?;
        let mut files = Vec::new();
        for file in &plan.files {
            let now = root
                .digest(&file.path, record.algorithm)
                .map_err(|source| Error::io(format!("read {}", Shown(&file.path)), source))?;
            if now.as_ref() != sent.get(&file.path) {
                files.push(file.clone());
            }
        }
        // What came from the sandbox and was never here in git is not gone because git does not know it.
        let gone = sent.keys().filter(|path| matches!(root.look(path), Ok(None))).cloned().collect();
        Ok(Self { plan, files, gone, sent })
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len() + self.gone.len()
    }
}

/// Sends what has changed. What was changed in the sandbox, too, is not overwritten.
pub async fn send(guest: &mut Guest, mut kept: Kept, changes: Changes) -> Result<()> {
    let place = kept.record.guest_path.clone();
    let head = changes.plan.repository.head.commit.clone();
    if changes.len() > 0 {
        check_guest(guest, &kept, &changes).await?;
        let gone = changes.gone.clone();
        let snapshot = kept.snapshot();
        let request = Request::PutTar { directory: place.clone(), placement: Placement::Merge };
        guest
            .call(request, move |call| {
                let mut archive = Builder::new(BufWriter::with_capacity(MAX_DATA, &mut *call));
                let mut sender =
                    Sender::new(&changes.plan.repository, &snapshot, Default::default())?.amending();
                changes.gone.into_iter().for_each(|path| sender.forget(path));
                for file in &changes.files {
                    sender.send(&mut archive, file)?;
                }
                archive.into_inner().and_then(|mut writer| writer.flush()).map_err(from_io)?;
                call.end_input()?;
                call.finish()?;
                sender.finish().map(drop)
            })
            .await?;
        if !gone.is_empty() {
            let request = Request::Remove { directory: place };
            guest
                .call(request, move |call| {
                    call.send_names(&gone)?;
                    call.finish()
                })
                .await?;
        }
    }
    if let Some(user) = kept.record.user.clone() {
        tooling::give(guest, &kept.record.guest_path, &user).await?;
    }
    kept.record.commit = head;
    kept.record.sent_at = age::now();
    kept.save()
}

/// Each file that is to be sent must be in the sandbox as it was sent, or as it is here now.
async fn check_guest(guest: &mut Guest, kept: &Kept, changes: &Changes) -> Result<()> {
    let names: Vec<Vec<u8>> =
        changes.files.iter().map(|file| file.path.clone()).chain(changes.gone.iter().cloned()).collect();
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
    Err(Error::Refused(format!("here and in the sandbox the same files have changed: {}", some_of(&both)))
        .advise("`banger vm workspace export --apply --force` brings the work in the sandbox here first."))
}

/// How HEAD has moved since the workspace was sent, in a sentence; none where it has not, or nobody knows.
pub fn drift(kept: &Kept, sandbox: &str) -> Option<String> {
    let record = &kept.record;
    if record.from_commit {
        return None;
    }
    let now = Repository::head_now(&record.source).ok()?;
    if now == record.commit {
        return None;
    }
    let short = |commit: &Option<String>| match commit {
        Some(commit) => commit.get(..12).unwrap_or(commit).to_owned(),
        None => "nothing".to_owned(),
    };
    Some(format!(
        "{} has moved from {} to {} since it was sent to {sandbox}: `--auto-prepare` sends what has changed.",
        record.source.display(),
        short(&record.commit),
        short(&now),
    ))
}
