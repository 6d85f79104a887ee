//! The options for sending a repository, and the messages about it.

use std::path::Path;

use banger_proto::count::{counted, is_or_are};
use clap::Args;
use serde_json::json;

use crate::{
    error::Result,
    ui::{output, progress::Progress},
    workspace::{
        export::first_names,
        prepare::{Plan, SendOptions},
        source::{DisplayPath, Mode, Repository},
        untracked::{self, Include},
    },
};

/// Default path of a repository in a sandbox.
pub const DEFAULT: &str = "/root/repo";

/// The options of a command that sends a repository.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "The repository")]
pub struct WorkspaceArgs {
    /// Check out a new branch, in the sandbox only
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
    /// Start the branch at this revision, and send its files instead of those of the work tree
    #[arg(long, value_name = "REVISION", requires = "branch")]
    from: Option<String>,
    /// Also send untracked files, but not ignored ones
    #[arg(long, conflicts_with = "from")]
    include_untracked: bool,
    /// Also send untracked and ignored files that match this git pattern, such as '.env*'
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// How much of the repository to send
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Shallow)]
    mode: Mode,
    /// Path in the sandbox [default: /root/repo, or as devcontainer.json says]
    #[arg(long, value_name = "PATH", value_parser = guest_path)]
    guest_path: Option<String>,
    /// Show what would be sent, and send nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Parses an absolute path in a sandbox, without `..`.
pub fn guest_path(text: &str) -> Result<String, String> {
    let path = Path::new(text);
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    match path.is_absolute() && plain && path.file_name().is_some() && !text.contains('\0') {
        true => Ok(text.trim_end_matches('/').to_owned()),
        false => Err("it must be an absolute path in the sandbox, such as /root/repo".to_owned()),
    }
}

impl WorkspaceArgs {
    /// Returns the options that a program gives instead of a command line.
    pub fn wanted(guest_path: Option<String>, include_untracked: bool) -> Self {
        Self { guest_path, include_untracked, ..Self::default() }
    }

    /// Plans how to send the repository at this path.
    pub fn plan(&self, path: &Path) -> Result<Plan> {
        let repository = Repository::open(path)?;
        let include =
            Include { patterns: self.include.clone(), directory: untracked::directory_of(&repository) };
        include.check(&repository)?;
        let wanted = SendOptions {
            mode: self.mode,
            include_untracked: self.include_untracked,
            include,
            branch: self.branch.clone(),
            from: self.from.clone(),
        };
        Plan::make(repository, wanted)
    }

    /// Returns whether any option is set.
    pub fn is_requested(&self) -> bool {
        self.branch.is_some()
            || self.include_untracked
            || !self.include.is_empty()
            || self.dry_run
            || self.mode != Mode::default()
    }

    /// Returns the path in the sandbox that the user has given.
    pub fn given_path(&self) -> Option<&str> {
        self.guest_path.as_deref()
    }

    /// Returns the path in the sandbox; `wanted` unless the user has given one.
    pub fn guest_path<'a>(&'a self, wanted: Option<&'a str>) -> &'a str {
        self.guest_path.as_deref().or(wanted).unwrap_or(DEFAULT)
    }
}

/// Notes what stays on the host, if that may be unexpected.
pub fn note_left(plan: &Plan, progress: &Progress, dry_run: bool) {
    if let Some(line) = untracked_note(&plan.left, dry_run) {
        progress.note(&line);
    }
    for what in &plan.unfinished.left {
        progress.note(&format!(
            "note: the {what} in progress is not sent, only the files as they are; `--mode full-copy` sends \
             it, too."
        ));
    }
    for nested in &plan.nested {
        progress.note(&format!("note: {} is a repository of its own and is not sent.", DisplayPath(nested)));
    }
}

/// Returns the note about untracked files, with the names of the first ones on a dry run.
fn untracked_note(left: &[Vec<u8>], dry_run: bool) -> Option<String> {
    let names = if dry_run { format!(": {}", first_names(left)) } else { String::new() };
    (!left.is_empty()).then(|| {
        format!(
            "note: {} {} untracked and not sent{names}; `--include-untracked` sends {}.",
            counted(left.len(), "file"),
            is_or_are(left.len()),
            if left.len() == 1 { "it" } else { "them" },
        )
    })
}

/// Prints what would be sent.
pub fn print_plan(plan: &Plan, guest_path: &str, json: bool) -> Result<()> {
    if json {
        let files: Vec<_> = plan
            .files
            .iter()
            .map(|file| {
                let mode = format!("{:06o}", file.mode);
                json!({"path": String::from_utf8_lossy(&file.path), "mode": mode, "size": file.size})
            })
            .collect();
        return output::json(&json!({
            "source": plan.repository.root,
            "guest_path": guest_path,
            "branch": plan.head.branch,
            "commit": plan.head.commit,
            "files": files,
            "bytes": plan.bytes(),
            "untracked_left": plan.left.len(),
        }));
    }
    let list: String = plan.files.iter().map(|file| format!("{}\n", DisplayPath(&file.path))).collect();
    output::text(&list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untracked_files_are_counted_and_named_on_a_dry_run() {
        let names: Vec<Vec<u8>> = (1..=8).map(|number| format!("f{number}").into_bytes()).collect();
        for (left, dry_run, expect) in [
            (0, true, None),
            (1, false, Some("note: 1 file is untracked and not sent; `--include-untracked` sends it.")),
            (2, false, Some("note: 2 files are untracked and not sent; `--include-untracked` sends them.")),
            (1, true, Some("note: 1 file is untracked and not sent: f1; `--include-untracked` sends it.")),
            (
                8,
                true,
                Some(
                    "note: 8 files are untracked and not sent: f1, f2, f3, f4, f5, 3 more; \
                     `--include-untracked` sends them.",
                ),
            ),
        ] {
            assert_eq!(untracked_note(&names[..left], dry_run).as_deref(), expect);
        }
    }

    #[test]
    fn a_path_in_a_sandbox_is_absolute_and_normal() {
        for good in ["/root/repo", "/x", "/root/repo/"] {
            assert_eq!(guest_path(good).as_deref(), Ok(good.trim_end_matches('/')));
        }
        for bad in ["", "/", "repo", "/root/../etc", "/.."] {
            assert!(guest_path(bad).is_err(), "{bad}");
        }
    }
}
