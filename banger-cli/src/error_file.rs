//! The file of `--error-file`, to which errors are also written as JSON: a line for each, for programs that run this
//! command.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::OnceLock,
};

use serde_json::{Value, json};

use crate::error::{Error, Result};

static FILE: OnceLock<File> = OnceLock::new();

/// Opens the file, and creates it if it does not exist. Errors are written to it from now on.
pub fn open(path: &Path) -> Result<()> {
    // Causes can name files of the user.
    let file = File::options().append(true).create(true).mode(0o600).open(path);
    let file = file.map_err(|source| Error::io(format!("open {}", path.display()), source))?;
    // A second file is a mistake on the command line, which the parser reports.
    let _ = FILE.set(file);
    Ok(())
}

/// Writes an error to the file, if there is one. `about` names what it is about, if it is one of several.
pub fn add(error: &Error, about: Option<&str>) {
    if let Some(file) = FILE.get() {
        // The error is on standard error as well, and there is nowhere to report this one.
        let _: io::Result<()> = (&*file).write_all(format!("{}\n", line(error, about)).as_bytes());
    }
}

fn line(error: &Error, about: Option<&str>) -> Value {
    let mut line = error.json();
    line["about"] = about.into();
    line
}

impl Error {
    /// Returns the error for a program: its code, what happened and why, and what to do about it.
    pub fn json(&self) -> Value {
        json!({
            "code": self.code(),
            "message": self.sentence(),
            "causes": self.causes(),
            "remedy": self.hint(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_error_is_written_as_one_line() {
        let error = Error::io("open /nowhere", io::Error::other("no\nsuch file"));
        let expect = json!({
            "code": "io",
            "message": "cannot open /nowhere.",
            "causes": ["no such file."],
            "remedy": null,
            "about": "web",
        });
        assert_eq!(line(&error, Some("web")), expect);
        assert!(!expect.to_string().contains('\n'));
    }
}
