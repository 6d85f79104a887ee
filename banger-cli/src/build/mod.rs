//! Builds images: runs the steps of a recipe or a Dockerfile in a throw-away sandbox, and makes an image of its disk.
//!
//! ```text
//!   recipe_file ─┐                      ┌─ base image: pulled if missing
//!                ├─► instruction ─► plan ┤
//!   dockerfile  ─┘    with lines        └─► session: create, run steps, prepare, stop, commit, delete
//!                                              │
//!                         context ─────────────┘  files of the host, beneath one directory
//! ```
//!
//! - A recipe or a Dockerfile is parsed as a whole before anything is created. What cannot be done is refused with the
//!   number of its line.
//! - The files of a build come from one directory, and no link leads out of it: the repository may be a stranger's.
//! - Everything is a request that any client can make. The sandbox belongs to this process's connection to the bus, so
//!   it is gone even if this process is killed.

mod context;
mod dockerfile;
mod events;
mod instruction;
mod plan;
mod recipe_file;
mod session;
mod shipped;
mod template;

use std::path::{Path, PathBuf};

pub use self::{
    events::Reporter,
    instruction::{Recipe, read_text, refused},
    plan::build_arg,
    recipe_file::part,
    session::{Request, build, digest_of, is_missing},
    shipped::{Missing, Once, of_default_image, once},
    template::is_name as is_variable,
};
use crate::error::Result;

/// The name of a Dockerfile in a directory.
const DOCKERFILE: &str = "Dockerfile";

/// Reads what to build: a shipped recipe by its name, a recipe, a Dockerfile, or a directory with one.
pub fn read(what: &str, file: Option<&Path>) -> Result<Recipe> {
    let path = Path::new(what);
    if file.is_none() && !what.contains('/') && !path.exists() {
        return shipped::named(what);
    }
    let (file, context) = match (file, path.is_dir()) {
        (Some(file), _) => (file.to_owned(), path.to_owned()),
        (None, true) => (path.join(DOCKERFILE), path.to_owned()),
        (None, false) => (path.to_owned(), parent(path)),
    };
    let text = read_text(&file)?;
    match file.extension().is_some_and(|extension| extension == "toml") {
        true => recipe_file::parse(&text, &file, &context),
        false => dockerfile::parse(&text, &file, &context),
    }
}

/// Returns the directory of a file.
fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}
