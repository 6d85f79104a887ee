//! What becomes of the work at the end of a run: it is shown, and applied to the work tree if the user says so. It is never
//! lost without a word: a sandbox that `--rm` would delete is kept if its changes were neither applied nor declined.

use std::io::{self, IsTerminal, Write};

use banger_proto::count::counted;

use crate::{
    client::service::id_of,
    error::{Error, Result},
    guest::agent::Guest,
    ui::{progress::Progress, sanitize},
    workspace::{
        apply::{self, Dirty},
        export::{self, Range},
        record::{Records, StoredWorkspace},
        tooling,
    },
};

/// Limit on the lines that show the changes. `banger vm workspace export --stat` has all.
const MAX_LINES: usize = 40;

/// When to apply the changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apply {
    /// If the user says so on the terminal.
    Ask,
    Always,
    Never,
}

/// What became of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// There is none.
    Unchanged,
    /// It is in the work tree.
    Applied,
    /// The user does not want it now.
    Declined,
    /// It is in the sandbox only.
    Left,
    /// Its files are in the work tree or unchanged, and its commits are in the sandbox only.
    Commits,
}

/// Shows the changes in a workspace, and applies them as requested.
pub async fn bring_back(
    guest: &mut Guest,
    guest_path: &str,
    progress: &Progress,
    when: Apply,
) -> Result<Work> {
    let kept = Records::of(&id_of(guest.vm()))?.find(Some(guest_path));
    let Some(kept) = kept else { return Ok(Work::Unchanged) };
    let work = bring_files_back(guest, &kept, progress, when).await?;
    let may_have_more = matches!(work, Work::Unchanged | Work::Applied);
    match may_have_more && tooling::has_commits(guest, &kept.record).await? {
        true => Ok(Work::Commits),
        false => Ok(work),
    }
}

async fn bring_files_back(
    guest: &mut Guest,
    kept: &StoredWorkspace,
    progress: &Progress,
    when: Apply,
) -> Result<Work> {
    let track = progress.track(None);
    export::fetch(guest, kept, &track).await?;
    drop(track);
    let range = Range::new(kept, None)?;
    let count = range.differences()?.len();
    if count == 0 {
        return Ok(Work::Unchanged);
    }
    // The names are those of the sandbox.
    let stat = sanitize::Filter::default().pass(&range.stat()?);
    let stat = shortened(&String::from_utf8_lossy(&stat));
    let asks = when == Apply::Ask && io::stdin().is_terminal() && io::stderr().is_terminal();
    if asks || !matches!(progress, Progress::Quiet) {
        progress
            .suspend(|| io::stderr().write_all(stat.as_bytes()))
            .map_err(|source| Error::io("show the changes", source))?;
    }
    let source = kept.record.source.display().to_string();
    match when {
        Apply::Never => Ok(Work::Declined),
        Apply::Ask if !asks => Ok(Work::Left),
        Apply::Ask => match ask(guest, progress, &source).await? {
            Some(true) => apply(kept, count, &source, progress),
            Some(false) => Ok(Work::Declined),
            None => Ok(Work::Left),
        },
        Apply::Always => apply(kept, count, &source, progress),
    }
}

/// Leaves out files of a long diffstat, whose last line has the sums.
fn shortened(stat: &str) -> String {
    let lines: Vec<&str> = stat.lines().collect();
    let (shown, left) = match lines.len().checked_sub(MAX_LINES) {
        None | Some(0) => return stat.to_owned(),
        Some(more) => (&lines[..MAX_LINES - 2], more + 1),
    };
    let last = lines.last().copied().unwrap_or_default();
    format!("{}\n and {left} more\n{last}\n", shown.join("\n"))
}

fn apply(kept: &StoredWorkspace, count: usize, source: &str, progress: &Progress) -> Result<Work> {
    apply::to_work_tree(kept, Dirty::Refuse)?;
    progress.note(&format!("{} changed in {source}.", counted(count, "file")));
    Ok(Work::Applied)
}

/// Asks on the terminal. Returns `None` if there is no answer.
async fn ask(guest: &mut Guest, progress: &Progress, source: &str) -> Result<Option<bool>> {
    // What was typed for the agent is no answer. Not every input can forget it.
    let _ = rustix::termios::tcflush(io::stdin(), rustix::termios::QueueSelector::IFlush);
    let question = sanitize::line(&format!("Apply these changes to {source}?"));
    progress
        .suspend(|| write!(io::stderr(), "{question} [y/n] "))
        .map_err(|source| Error::io("ask on the terminal", source))?;
    // In a thread, so that a signal ends the wait. The thread then ends with this process.
    let reading = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|length| (length > 0).then_some(answer))
    });
    let answered = guest.unless_ended(async { Ok(reading.await) }).await?;
    let answer = answered.ok().and_then(Result::ok).flatten();
    Ok(answer.and_then(|answer| match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Some(true),
        "n" | "no" => Some(false),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_changes_is_shortened() {
        let stat = |files: usize| {
            let lines = (1..=files).map(|number| format!(" f{number} | 1 +\n"));
            lines.chain([" sums\n".to_owned()]).collect::<String>()
        };
        for files in [0, 1, MAX_LINES - 1] {
            assert_eq!(shortened(&stat(files)), stat(files));
        }
        let shown = shortened(&stat(100));
        assert_eq!(shown.lines().count(), MAX_LINES);
        assert!(
            shown.starts_with(" f1 | 1 +\n") && shown.contains(" f38 | 1 +\n and 62 more\n sums\n"),
            "{shown}"
        );
        assert!(shortened(&stat(MAX_LINES)).contains(" f38 | 1 +\n and 2 more\n"));
    }
}
