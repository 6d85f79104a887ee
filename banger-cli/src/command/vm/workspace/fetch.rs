//! `banger vm workspace fetch`.

use banger_proto::count::{counted, is_or_are};
use clap::Args;

use super::stored;
use crate::{
    command::vm::workspace_args::guest_path,
    error::Result,
    guest::agent::Guest,
    ui::{
        output,
        progress::{Progress, ProgressArgs},
    },
    workspace::{
        commits::{self, Commits, Fetched, Uncommitted},
        export::first_names,
        record::{StoredWorkspace, reference, shell_word},
    },
};

/// Bring back the commits in a workspace
///
/// Fetches the branches of the sandbox, with their messages, authors and merges, to refs/banger/SANDBOX/ in the
/// repository that was sent. Nothing is checked out, and your branches stay as they are. git must be installed in the
/// sandbox.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm workspace fetch web
  banger vm workspace fetch web --branch work   also create the branch work
  git log refs/banger/web/main                  what came back
  git merge refs/banger/web/main                take it into the current branch

Files that are not committed in the sandbox stay there: `banger vm workspace export` brings them back.")]
pub struct Fetch {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Fetch from the workspace at this path in the sandbox [default: the one that was sent last]
    #[arg(long, value_name = "PATH", value_parser = guest_path)]
    guest_path: Option<String>,
    /// Also create this branch, at the commit that is checked out in the sandbox
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
    /// Print a JSON object about the branches
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Fetch {
    /// Returns what `export --commits` stands for.
    pub fn of_export(
        sandbox: &str,
        guest_path: Option<&str>,
        branch: Option<&str>,
        json: bool,
        progress: ProgressArgs,
    ) -> Self {
        let [guest_path, branch] = [guest_path, branch].map(|text| text.map(str::to_owned));
        Self { sandbox: sandbox.to_owned(), guest_path, branch, json, progress }
    }

    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let mut guest = Guest::of(&self.sandbox).await?;
        let kept = stored(&guest, &self.sandbox, self.guest_path.as_deref())?;
        let track = progress.track(None);
        let fetched = commits::fetch(&mut guest, &kept, self.branch.as_deref(), &track).await;
        drop(track);
        let workspace = reference(&self.sandbox, self.guest_path.as_deref());
        let fetched = fetched.map_err(|error| error.about(&workspace))?;
        match self.json {
            true => output::json(&fetched.json(&kept))?,
            false => output::text(&list(&fetched))?,
        }
        notes(&fetched, &kept, &workspace).iter().for_each(|note| progress.note(note));
        Ok(0)
    }
}

/// Returns a line for each branch that is new or has moved.
fn list(fetched: &Commits) -> String {
    fetched.moved().map(line).collect()
}

fn line(one: &Fetched) -> String {
    let commits = counted(one.new_commits, "new commit");
    match &one.old {
        Some(old) if one.forced => {
            format!("{}: {commits}, {}...{} (forced update)\n", one.reference, short(old), short(&one.commit))
        }
        _ => format!("{}: {commits}\n", one.reference),
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Returns what to do next.
fn notes(fetched: &Commits, kept: &StoredWorkspace, workspace: &str) -> Vec<String> {
    let source = shell_word(&kept.record.source.display().to_string());
    let mut notes = Vec::new();
    // What is checked out there, if that has moved.
    let mut moved = fetched.moved().map(|one| &one.reference).peekable();
    let first = moved.peek().copied();
    let to_merge = moved.find(|name| Some(*name) == fetched.current.as_ref()).or(first);
    match (&fetched.created, to_merge) {
        (Some(branch), _) => {
            notes.push(format!("`git -C {source} switch {branch}` checks the new branch out."))
        }
        (None, Some(branch)) => {
            notes.push(format!("`git -C {source} merge {}` merges what came back.", shell_word(branch)));
        }
        _ => notes.push("there are no new commits in the sandbox.".to_owned()),
    }
    match &fetched.uncommitted {
        None => notes.push(
            "warning: cannot tell which files are not committed in the sandbox: `git status` fails there.".to_owned(),
        ),
        Some(Uncommitted { files, .. }) if files.is_empty() => {}
        Some(Uncommitted { files, is_cut }) => notes.push(format!(
            "note: {}{} in the sandbox {} not committed and stayed there: {}; `banger vm workspace export {workspace}` \
             brings back the changes.",
            if *is_cut { "at least " } else { "" },
            counted(files.len(), "file"),
            is_or_are(files.len()),
            first_names(files),
        )),
    }
    notes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::workspace::record::tests::stored;

    #[test]
    fn notes_say_what_came_back_and_what_did_not() {
        let branch = Fetched {
            name: "main".to_owned(),
            reference: "refs/banger/web/main".to_owned(),
            commit: "b".repeat(40),
            old: Some("a".repeat(40)),
            new_commits: 2,
            forced: false,
        };
        let unmoved = || Fetched { old: Some("b".repeat(40)), ..branch.clone() };
        let fetched = |branch: Fetched, created: Option<&str>, uncommitted: &[&str]| Commits {
            current: Some(branch.reference.clone()),
            branches: vec![branch],
            created: created.map(str::to_owned),
            uncommitted: Some(Uncommitted {
                files: uncommitted.iter().map(|name| name.as_bytes().to_vec()).collect(),
                is_cut: false,
            }),
        };
        let merge = "`git -C /home/ann/repo merge refs/banger/web/main` merges what came back.";
        for (fetched, lines, expect) in [
            (fetched(branch.clone(), None, &[]), "refs/banger/web/main: 2 new commits\n", vec![merge]),
            (
                fetched(Fetched { forced: true, ..branch.clone() }, None, &[]),
                "refs/banger/web/main: 2 new commits, aaaaaaaaaaaa...bbbbbbbbbbbb (forced update)\n",
                vec![merge],
            ),
            (
                Commits {
                    branches: vec![
                        unmoved(),
                        Fetched { reference: "refs/banger/web/side".into(), ..branch.clone() },
                    ],
                    ..fetched(unmoved(), None, &[])
                },
                "refs/banger/web/side: 2 new commits\n",
                vec!["`git -C /home/ann/repo merge refs/banger/web/side` merges what came back."],
            ),
            (
                Commits { uncommitted: None, ..fetched(branch.clone(), None, &[]) },
                "refs/banger/web/main: 2 new commits\n",
                vec![
                    merge,
                    "warning: cannot tell which files are not committed in the sandbox: `git status` fails there.",
                ],
            ),
            (fetched(unmoved(), None, &[]), "", vec!["there are no new commits in the sandbox."]),
            (
                fetched(unmoved(), Some("work"), &["a\u{1b}b"]),
                "",
                vec![
                    "`git -C /home/ann/repo switch work` checks the new branch out.",
                    "note: 1 file in the sandbox is not committed and stayed there: \"a\\x1bb\"; `banger vm workspace \
                     export web` brings back the changes.",
                ],
            ),
        ] {
            assert_eq!(list(&fetched), lines);
            assert_eq!(notes(&fetched, &stored("/root/repo"), "web"), expect);
        }
    }
}
