//! The codes of errors, and the names of their classes.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

/// The names of errors on the bus, with their documentation.
const NAMES: &str = "banger-proto/src/bus/error.rs";
/// The page with the table of the codes that are no names.
const PAGE: &str = "docs/agents.md";

/// A code of an error.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// The code, such as `dev.banger.Error.NoSuchVM` or `guest.not-found`.
    pub code: String,
    /// The name of its class, such as `NoSuchVMError`.
    pub class: String,
    /// What happened, as a sentence.
    pub about: String,
}

impl Code {
    fn new(code: &str, about: &str) -> Self {
        let name = code.strip_prefix("dev.banger.Error.").unwrap_or(code);
        let name = name.strip_prefix("org.freedesktop.DBus.Error.").unwrap_or(name);
        let mut class: String = name.split(['.', '-']).map(capitalized).collect();
        if !class.ends_with("Error") {
            class.push_str("Error");
        }
        let about = format!("{}.", capitalized(about.trim_end_matches('.')));
        Self { code: code.to_owned(), class, about }
    }
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Returns all codes: first the names on the bus.
pub fn read(repository: &Path) -> Result<Vec<Code>> {
    let text =
        |path: &str| fs::read_to_string(repository.join(path)).with_context(|| format!("cannot read {path}"));
    let codes = [of_bus(&text(NAMES)?), of_table(&text(PAGE)?)];
    ensure!(codes.iter().all(|codes| codes.len() > 5), "{NAMES} or {PAGE} has no codes");
    Ok(codes.into_iter().flatten().collect())
}

/// Reads lines such as `NoSuchVm = "dev.banger.Error.NoSuchVM",` and the documentation before them.
fn of_bus(source: &str) -> Vec<Code> {
    let (mut codes, mut about) = (Vec::new(), Vec::new());
    let table = source.split("\nerror_names! {").nth(1).unwrap_or_default();
    for line in table.lines().map(str::trim).take_while(|line| *line != "}") {
        if let Some(text) = line.strip_prefix("///") {
            about.push(text.trim());
        } else if let Some(name) = line.split('"').nth(1) {
            codes.push(Code::new(name, &about.join(" ")));
            about.clear();
        }
    }
    codes
}

/// Reads the rows of the table of codes.
fn of_table(page: &str) -> Vec<Code> {
    let table = page.split("| code | what happened |\n").nth(1).unwrap_or_default();
    let rows = table.lines().map_while(|line| line.strip_prefix("| ").or(line.strip_prefix("|-")));
    let cells = rows.filter_map(|row| row.strip_prefix('`')?.trim_end_matches(" |").split_once("` | "));
    cells.map(|(code, about)| Code::new(code, about)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_from_the_source_and_the_page() {
        let source = "x\nerror_names! {\n    /// No sandbox has\n    /// this name.\n    A = \"dev.banger.Error.NoSuchVM\",\n    /// Bad.\n    B = \"dev.banger.Error.RegistryError\",\n}\n\"no\"\n";
        let codes = of_bus(source);
        let class = |code: &Code| code.class.clone();
        assert_eq!(codes.iter().map(class).collect::<Vec<_>>(), ["NoSuchVMError", "RegistryError"]);
        assert_eq!(codes[0].about, "No sandbox has this name.");
        let page = "| code | what happened |\n|---|---|\n| `io` | the host refused |\n| `guest.not-found` | gone |\n\n| `no` | no |\n";
        let codes = of_table(page);
        assert_eq!(codes.iter().map(class).collect::<Vec<_>>(), ["IoError", "GuestNotFoundError"]);
        assert_eq!((codes[0].code.as_str(), codes[0].about.as_str()), ("io", "The host refused."));
    }
}
