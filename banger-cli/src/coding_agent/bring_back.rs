//! What becomes of the work at the end of a run: it is shown, and applied to the work tree if the user says so. It is never
//! lost without a word: a sandbox that `--rm` would delete is kept if its changes were neither applied nor declined.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use banger_proto::count::counted;

use crate::{
    client::service::id_of,
    error::{Error, Result},
    guest::agent::Guest,
    ui::{progress::Progress, sanitize, terminal},
    user::dirs::UserDirs,
    workspace::{
        apply::{self, Dirty},
        export::{self, Range},
        record::{Records, StoredWorkspace},
        tooling,
    },
};

/// Limit on the lines that show the changes. `banger vm workspace export --stat` has all.
const MAX_LINES: usize = 40;

/// How often the question is asked, if the answers are unclear.
const MAX_QUESTIONS: usize = 3;

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
    /// The agent changed nothing.
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
            Some(true) => apply(kept, &source, progress),
            Some(false) => Ok(Work::Declined),
            None => Ok(Work::Left),
        },
        Apply::Always => apply(kept, &source, progress),
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

fn apply(kept: &StoredWorkspace, source: &str, progress: &Progress) -> Result<Work> {
    refuse_configuration(kept)?;
    let count = apply::to_work_tree(kept, Dirty::Refuse)?.len();
    progress.note(&format!("{} changed in {source}.", counted(count, "file")));
    Ok(Work::Applied)
}

/// Refuses changes of the user's configuration of banger, such as presets: they choose what the next agent gets.
fn refuse_configuration(kept: &StoredWorkspace) -> Result<()> {
    let configuration = real(&UserDirs::of_caller()?.configuration());
    let root = real(&kept.record.source);
    let changed = Range::new(kept, None)?.differences()?;
    match first_below(&configuration, &root, changed.iter().map(|one| one.path.as_slice())) {
        None => Ok(()),
        Some(path) => Err(Error::Refused(format!(
            "cannot apply the work: it changes {}, which configures banger",
            path.display()
        ))
        .with_hint(
            "read it first: `banger vm workspace export NAME` shows it, and with `--apply` applies it.",
        )),
    }
}

/// Returns a path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    match found.and_then(|(ancestor, real)| Some(real.join(path.strip_prefix(ancestor).ok()?))) {
        Some(real) => real,
        None => path.to_owned(),
    }
}

/// Returns the first of these paths below a root that is in a directory.
fn first_below<'a>(
    directory: &Path,
    root: &Path,
    mut paths: impl Iterator<Item = &'a [u8]>,
) -> Option<PathBuf> {
    paths.by_ref().map(|path| root.join(OsStr::from_bytes(path))).find(|path| path.starts_with(directory))
}

/// Asks on the terminal, and again at an answer that is unclear. Returns `None` if there is no answer.
async fn ask(guest: &mut Guest, progress: &Progress, source: &str) -> Result<Option<bool>> {
    let question = sanitize::line(&format!("Apply these changes to {source}?"));
    for _ in 0..MAX_QUESTIONS {
        // What was typed for the agent is no answer, and neither is what the terminal has sent to it. Not every input can
        // forget it.
        let _ = rustix::termios::tcflush(io::stdin(), rustix::termios::QueueSelector::IFlush);
        progress
            .suspend(|| terminal::question(&format!("{question} [y/n]")))
            .map_err(|source| Error::io("ask on the terminal", source))?;
        // In a thread, so that a signal ends the wait. The thread then ends with this process.
        let reading = tokio::task::spawn_blocking(|| {
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).map(|length| (length > 0).then_some(answer))
        });
        let answered = guest.unless_ended(async { Ok(reading.await) }).await?;
        match answered.ok().and_then(Result::ok).flatten().map(|answer| Answer::of(&answer)) {
            Some(Answer::Clear(answer)) => return Ok(Some(answer)),
            Some(Answer::Unclear) => {}
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// An answer to a question.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Clear(bool),
    Unclear,
}

impl Answer {
    fn of(line: &str) -> Self {
        match line.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Self::Clear(true),
            "n" | "no" => Self::Clear(false),
            _ => Self::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_answer_is_yes_no_or_unclear() {
        for (line, expect) in [
            ("y\n", Answer::Clear(true)),
            (" Yes\n", Answer::Clear(true)),
            ("N", Answer::Clear(false)),
            ("no\n", Answer::Clear(false)),
            ("\n", Answer::Unclear),
            ("yn\n", Answer::Unclear),
            // A terminal has said what it is.
            ("\u{1b}[?62;22cy\n", Answer::Unclear),
        ] {
            assert_eq!(Answer::of(line), expect, "{line:?}");
        }
    }

    #[test]
    fn changes_of_the_configuration_are_found() {
        let home = tempfile::tempdir().unwrap();
        let check = |root: &str, paths: &[&str], expect: Option<&str>| {
            let home = real(home.path());
            let paths = paths.iter().map(|path| path.as_bytes());
            let found = first_below(&real(&home.join(".config/banger")), &real(&home.join(root)), paths);
            assert_eq!(found, expect.map(|path| home.join(path)), "{root}");
        };
        let preset = ".config/banger/agents/claude.toml";
        for _ in 0..2 {
            check("", &["x", preset], Some(preset));
            check(".config", &["banger/agents/claude.toml"], Some(preset));
            check(".config/banger/agents", &["claude.toml"], Some(preset));
            check("", &[".config/banger2/x", ".config/x", "banger/x"], None);
            check("src", &[preset], None);
            // The same with a directory that exists.
            std::fs::create_dir_all(home.path().join(".config/banger")).unwrap();
        }
        std::os::unix::fs::symlink(home.path(), home.path().join("link")).unwrap();
        check("link", &[preset], Some(preset));
    }

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
