//! Takes the debug symbols out of a program.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{contents::File, libraries::build_id};
use crate::run::{cache, command, run};

/// Returns a program without its symbols, and the file with them.
pub fn split(program: &Path, path: &str, mode: u32) -> Result<(File, File)> {
    let directory = cache().join("generated/symbols");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let id = build_id(program)?;
    let found_at = found_at(path, id.as_deref());
    let stripped = directory.join(program.file_name().context("a program has no name")?);
    let symbols = directory.join(Path::new(&found_at).file_name().context("symbols have no name")?);
    run(command("objcopy", ["--only-keep-debug", "--compress-debug-sections"]).arg(program).arg(&symbols))?;
    // As debhelper strips programs.
    let strip = ["--strip-unneeded", "--remove-section=.comment", "--remove-section=.note", "-o"];
    run(command("strip", strip).arg(&stripped).arg(program))?;
    if id.is_none() {
        run(command("objcopy", ["--add-gnu-debuglink"]).arg(&symbols).arg(&stripped))?;
    }
    Ok((File::read(&stripped, path, mode)?, File::read(&symbols, &found_at, 0o644)?))
}

/// Returns where debuggers look for the symbols of a program: by its build id, which `cargo xtask dist` gives it, or
/// else by its path.
fn found_at(path: &str, id: Option<&str>) -> String {
    match id.and_then(|id| id.split_at_checked(2)) {
        Some((begin, rest)) => format!("usr/lib/debug/.build-id/{begin}/{rest}.debug"),
        None => format!("usr/lib/debug/{path}.debug"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_where_debuggers_look_for_them() {
        assert_eq!(found_at("usr/bin/a", Some("abcdef")), "usr/lib/debug/.build-id/ab/cdef.debug");
        assert_eq!(found_at("usr/bin/a", None), "usr/lib/debug/usr/bin/a.debug");
    }
}
