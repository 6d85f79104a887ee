//! The instructions of a recipe or a Dockerfile.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::template::{self, Variables};
use crate::{
    command::add::open_file,
    error::{Error, Result},
};

/// The longest recipe or Dockerfile.
const MAX_TEXT: u64 = 1 << 20;

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The file, for messages.
    pub file: PathBuf,
    /// `sha256:` and the digest of its text.
    pub digest: String,
    /// The directory that files are copied from.
    pub context: PathBuf,
    /// The name of the image, unless the user chooses another.
    pub name: Option<String>,
    /// The base image: a name or a reference.
    pub base: Text,
    /// The line with the base.
    pub base_line: usize,
    /// Arguments that the base may depend on, with their defaults.
    pub base_arguments: Vec<(String, Option<Text>)>,
    /// What to do, in order.
    pub instructions: Vec<Instruction>,
}

/// An instruction, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Its line; 0 if the file has no order.
    pub line: usize,
    /// What progress shows.
    pub shown: String,
    /// What to do.
    pub what: What,
}

/// What an instruction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Runs a program with its arguments, as the current user.
    Run(Vec<String>),
    /// Runs a program with its arguments as root, whatever user the image has.
    RunAsRoot(Vec<String>),
    /// Copies files of the context.
    Copy {
        /// Paths or patterns in the context.
        sources: Vec<Text>,
        /// Where they go.
        to: Text,
        /// `USER[:GROUP]`; root without one.
        owner: Option<Text>,
    },
    /// Writes a file.
    Write {
        /// An absolute path.
        path: String,
        /// Its permissions.
        mode: u32,
        /// Its content.
        content: Vec<u8>,
    },
    /// Sets variables of the environment.
    Env(Vec<(String, Text)>),
    /// Declares an argument of the build, with its default.
    Arg(String, Option<Text>),
    /// Changes the working directory.
    Workdir(Text),
    /// Changes the user.
    User(Text),
    /// Adds labels.
    Label(Vec<(Text, Text)>),
    /// Sets the default arguments.
    Cmd(Vec<String>),
    /// Sets the entry point.
    Entrypoint(Vec<String>),
    /// Adds ports.
    Expose(Vec<Text>),
    /// Sets the signal that ends the program.
    StopSignal(Text),
}

/// A text, in which variables may be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// As it is.
    Literal(String),
    /// With quotes, escapes and variables of Dockerfiles.
    Template(String),
}

impl Text {
    /// Returns the text with the values of its variables.
    pub fn value(&self, variables: &Variables) -> Result<String, String> {
        match self {
            Self::Literal(text) => Ok(text.clone()),
            Self::Template(template) => template::expand(template, variables),
        }
    }
}

/// Returns the error about a line of a file.
pub fn refused(file: &Path, line: usize, why: impl std::fmt::Display) -> Error {
    Error::Refused(match line {
        0 => format!("cannot use {}: {why}", file.display()),
        line => format!("cannot use {}: line {line}: {why}", file.display()),
    })
}

/// Reads a file of limited size.
pub fn read_text(path: &Path) -> Result<String> {
    let failed = |source| Error::io(format!("read {}", path.display()), source);
    let mut text = String::new();
    if open_file(path)?.take(MAX_TEXT + 1).read_to_string(&mut text).map_err(failed)? as u64 > MAX_TEXT {
        return Err(Error::Refused(format!("cannot use {}: it is larger than 1 MiB", path.display())));
    }
    Ok(text)
}

/// Returns the digest of a recipe.
pub fn digest(text: &str) -> String {
    format!("sha256:{:x}", Sha256::digest(text.as_bytes()))
}
