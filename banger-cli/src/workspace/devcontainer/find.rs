//! Finds the devcontainer.json of a repository, among the files that are sent.

use std::{io::Read, path::Path};

use crate::{
    error::{Error, Result},
    workspace::{
        files::{Exactly, Found as FoundFile, Root},
        prepare::{Plan, Planned},
        sender::cannot_read,
        source::{DisplayPath, SYMLINK},
    },
};

/// Paths of the file, in order of preference.
const FILES: [&str; 2] = [".devcontainer/devcontainer.json", ".devcontainer.json"];
/// Directory of several files, each in a directory of its own.
const SEVERAL: &str = ".devcontainer";
const NAME: &str = "devcontainer.json";
/// Limit on the size of the file.
const MAX_SIZE: u64 = 1 << 20;
/// Limit on the names in a message.
const MAX_SHOWN: usize = 8;

/// A file that was found.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The file.
    pub file: &'a Planned,
    /// Its path.
    pub path: &'a str,
    /// The directory whose settings it has, relative to the repository.
    pub opened: &'a str,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Search<'a> {
    /// The file to use.
    pub found: Option<Found<'a>>,
    /// Others that `--devcontainer` could choose.
    pub others: Vec<&'a str>,
}

/// Finds the file that the user has chosen, else that of the directory that was named, else that of a directory above
/// it.
pub fn find<'a>(plan: &'a Plan, choice: Option<&Path>) -> Result<Search<'a>> {
    let prefix = plan.repository.prefix.to_str().unwrap_or_default().trim_end_matches('/');
    if let Some(choice) = choice {
        let (file, path) = chosen(plan, prefix, choice).ok_or_else(|| missing(plan, prefix, choice))?;
        return Ok(Search { found: Some(Found { file, path, opened: prefix }), others: Vec::new() });
    }
    for opened in above(prefix) {
        let several = several_in(plan, opened);
        let usual = FILES.iter().find_map(|name| named(plan, &join(opened, name)));
        let alone = several.first().filter(|_| several.len() == 1).and_then(|path| named(plan, path));
        if let Some((file, path)) = usual.or(alone) {
            let others = several.into_iter().filter(|other| *other != path).collect();
            return Ok(Search { found: Some(Found { file, path, opened }), others });
        }
        if !several.is_empty() {
            return Ok(Search { found: None, others: several });
        }
    }
    Ok(Search::default())
}

/// Lists names for a message.
pub fn listed(names: &[&str]) -> String {
    let mut shown: Vec<String> =
        names.iter().take(MAX_SHOWN).map(|name| DisplayPath(name.as_bytes()).to_string()).collect();
    if names.len() > MAX_SHOWN {
        shown.push(format!("and {} more", names.len() - MAX_SHOWN));
    }
    shown.join(", ")
}

/// Returns a directory and those above it, up to the repository, which is empty.
fn above(directory: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(directory), |directory| match directory.rsplit_once('/') {
        Some((above, _)) => Some(above),
        None => (!directory.is_empty()).then_some(""),
    })
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

fn named<'a>(plan: &'a Plan, path: &str) -> Option<(&'a Planned, &'a str)> {
    let file = plan.files.iter().find(|file| file.path == path.as_bytes())?;
    Some((file, std::str::from_utf8(&file.path).ok()?))
}

/// Returns the files that are in directories of their own.
fn several_in<'a>(plan: &'a Plan, opened: &str) -> Vec<&'a str> {
    let directory = format!("{}/", join(opened, SEVERAL));
    let is_one = |path: &&str| {
        let name = path.strip_prefix(&directory).and_then(|rest| rest.strip_suffix(NAME));
        name.and_then(|name| name.strip_suffix('/')).is_some_and(|name| !name.contains('/'))
    };
    plan.files.iter().filter_map(|file| std::str::from_utf8(&file.path).ok()).filter(is_one).collect()
}

/// Finds a file by what a user may write for it: a path on the host, a path in the repository, its directory, or the
/// name of its directory in `.devcontainer`.
fn chosen<'a>(plan: &'a Plan, prefix: &str, choice: &Path) -> Option<(&'a Planned, &'a str)> {
    let in_repository =
        |path: &Path| path.strip_prefix(&plan.repository.root).ok()?.to_str().map(str::to_owned);
    let on_host = choice.canonicalize().ok().and_then(|path| in_repository(&path));
    let text = choice.to_str()?.trim_start_matches("./").trim_end_matches('/');
    let of_text =
        [join(prefix, text), text.to_owned(), join(prefix, &join(SEVERAL, text)), join(SEVERAL, text)];
    on_host.into_iter().chain(of_text).find_map(|path| {
        named(plan, &path)
            .or_else(|| named(plan, &join(&path, NAME)))
            .or_else(|| named(plan, &join(&path, FILES[0])))
    })
}

fn missing(plan: &Plan, prefix: &str, choice: &Path) -> Error {
    let shown = DisplayPath(choice.as_os_str().as_encoded_bytes()).to_string();
    let usual = above(prefix).flat_map(|opened| FILES.map(|name| join(opened, name)));
    let usual: Vec<_> = usual.filter_map(|path| named(plan, &path)).map(|(_, path)| path).collect();
    let several = above(prefix).flat_map(|opened| several_in(plan, opened));
    let all: Vec<_> = usual.into_iter().chain(several).collect();
    let error = Error::Refused(format!("cannot find {shown} among the files that are sent"));
    match all.is_empty() {
        true => error.with_hint("`--include PATTERN` also sends untracked files."),
        false => error.with_hint(format!("the repository has {}.", listed(&all))),
    }
}

/// Reads the file as it will be in the sandbox.
pub fn read(plan: &Plan, file: &Planned) -> Result<String> {
    let shown = || DisplayPath(&file.path).to_string();
    if file.size > MAX_SIZE {
        return Err(Error::Refused(format!("{} is longer than {} KiB", shown(), MAX_SIZE >> 10)));
    }
    let bytes = match &file.id {
        _ if file.mode == SYMLINK => return Err(Error::Refused(format!("{} is not a file", shown()))),
        Some(id) => plan.repository.git().run(&["cat-file", "blob", id], b"")?,
        None => {
            let failed = |source| cannot_read(&file.path, source);
            match Root::open(&plan.repository.root)?.look(&file.path).map_err(failed)? {
                Some(FoundFile::File(content, _)) => {
                    let mut bytes = Vec::new();
                    Exactly::new(content, file.size).read_to_end(&mut bytes).map_err(failed)?;
                    bytes
                }
                _ => return Err(Error::Refused(format!("{} is not a file", shown()))),
            }
        }
    };
    String::from_utf8(bytes).map_err(|_| Error::Refused(format!("{} is not UTF-8", shown())))
}
