//! Recipes that the package ships, and the default image, which is built from one of them.

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use zbus::OwnedObjectPath;

use super::{
    events::Reporter,
    instruction::{Recipe, read_text},
    parent, recipe_file,
    session::{self, Request},
};
use crate::{
    client::{bus::Bus, job::Jobs, pull::PullPolicy, service::Kind},
    command::vm::size_args::SizeArgs,
    error::{Error, Result},
    ui::signals::{Listener, unless_ended},
    user::dirs::UserDirs,
};

/// Where recipes are. The administrator's come first.
const DIRECTORIES: [&str; 2] = ["/etc/banger/recipes", "/usr/share/banger/recipes"];
const EXTENSION: &str = "toml";
/// Poll interval for the end of another build.
const POLL: std::time::Duration = std::time::Duration::from_millis(500);

/// Reads the recipe of this name.
pub fn named(name: &str) -> Result<Recipe> {
    match find(name, &DIRECTORIES.map(PathBuf::from)) {
        Some(path) => recipe_file::parse(&read_text(&path)?, &path, &parent(&path)),
        None => Err(recipe_file::missing(name, &names())),
    }
}

fn find(name: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    // A name, and no path.
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let files = directories.iter().map(|directory| directory.join(format!("{name}.{EXTENSION}")));
    files.into_iter().find(|path| is_name && path.is_file())
}

/// Returns the names of all recipes.
fn names() -> Vec<String> {
    let entries = DIRECTORIES.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let recipes = paths.filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    let mut names: Vec<String> =
        recipes.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    names.sort();
    names.dedup();
    names
}

/// Why the default image is not there.
pub enum Missing {
    /// No recipe has its name.
    NoRecipe,
    /// Its build has failed.
    Failed(Error),
}

/// Builds the default image from the recipe of its name, unless it exists by then: of several commands of a user, one
/// builds, and the others wait for it. Returns the image.
pub async fn of_default_image(
    bus: &Bus,
    jobs: &Jobs,
    reporter: &Reporter,
    listener: &mut Listener,
    name: &str,
) -> Result<OwnedObjectPath, Missing> {
    let Some(path) = find(name, &DIRECTORIES.map(PathBuf::from)) else { return Err(Missing::NoRecipe) };
    let built = async {
        let recipe = recipe_file::parse(&read_text(&path)?, &path, &parent(&path))?;
        let title = format!("the default image {name}");
        once(bus, jobs, reporter, listener, &Once { recipe: &recipe, name, title, replace: false }).await
    };
    built.await.map_err(Missing::Failed)
}

/// An image that is built if it is missing.
pub struct Once<'a> {
    pub recipe: &'a Recipe,
    /// The name of the image.
    pub name: &'a str,
    /// What messages call it.
    pub title: String,
    /// Whether it is built again if it exists.
    pub replace: bool,
}

/// Builds an image, unless it exists by then. Of several commands of a user, one builds, and the others wait for it. Returns
/// the image.
pub async fn once(
    bus: &Bus,
    jobs: &Jobs,
    reporter: &Reporter,
    listener: &mut Listener,
    wanted: &Once<'_>,
) -> Result<OwnedObjectPath> {
    let Once { recipe, name, title, replace } = wanted;
    let _lock = lock(&UserDirs::of_caller()?.builds(), name, reporter, listener).await?;
    if !replace {
        match bus.find(Kind::Image, name).await {
            Err(error) if session::is_missing(&error) => {}
            found => return found,
        }
    }
    reporter.note(&format!(
        "building {title} from {}{}; this needs internet access and takes some minutes.",
        recipe.file.display(),
        if *replace { "" } else { ", once" }
    ));
    let request = Request {
        recipe,
        name,
        arguments: &[],
        force: *replace,
        keep: false,
        pull: PullPolicy::Missing,
        kernel: None,
        sizes: SizeArgs::default(),
    };
    session::build(bus, jobs, reporter, listener, &request).await
}

/// Takes the lock of a build, which the kernel releases when this process ends.
async fn lock(directory: &Path, name: &str, reporter: &Reporter, listener: &mut Listener) -> Result<File> {
    let path = directory.join(format!("{name}.lock"));
    let failed = |source| Error::io(format!("lock {}", path.display()), source);
    fs::create_dir_all(directory).map_err(failed)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let mut waits = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) if std::io::Error::from(error).kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error.into())),
        }
        if !std::mem::replace(&mut waits, true) {
            reporter.note(&format!("waiting: another command of yours builds the image {name}."));
        }
        let pause = async {
            tokio::time::sleep(POLL).await;
            Ok(())
        };
        unless_ended(listener, pause).await?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ui::{
        progress::{Progress, ProgressArgs},
        signals::Signals,
    };

    #[test]
    fn a_recipe_is_found_by_name_and_the_administrators_comes_first() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let directories = [first.path().to_owned(), second.path().to_owned()];
        fs::write(second.path().join("debian-bookworm.toml"), "").unwrap();
        assert_eq!(find("debian-bookworm", &directories), Some(second.path().join("debian-bookworm.toml")));
        fs::write(first.path().join("debian-bookworm.toml"), "").unwrap();
        assert_eq!(find("debian-bookworm", &directories), Some(first.path().join("debian-bookworm.toml")));
        for name in ["", "debian", "../debian-bookworm", "a/b", "debian-bookworm.toml"] {
            assert_eq!(find(name, &directories), None, "{name}");
        }
    }

    #[tokio::test]
    async fn one_command_builds_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let reporter = Reporter::new(Progress::new(ProgressArgs { quiet: true }), false);
        let mut listener = Signals::catch().unwrap().listen();
        let first = lock(directory.path(), "x", &reporter, &mut listener).await.unwrap();
        let other = lock(directory.path(), "y", &reporter, &mut listener).await.unwrap();
        let second = lock(directory.path(), "x", &reporter, &mut listener);
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), second).await;
        assert!(early.is_err(), "two commands have the lock");
        drop((first, other));
        lock(directory.path(), "x", &reporter, &mut listener).await.unwrap();
    }
}
