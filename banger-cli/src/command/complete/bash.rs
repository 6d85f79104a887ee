//! Completions for bash, which splits words at `:` and `=` as well: `web:/etc` is three words to it.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    path::Path,
};

use clap_complete::{
    engine,
    env::{Bash, EnvCompleter},
};

/// The environment variable with the line up to the cursor.
pub const LINE: &str = "_BANGER_LINE";
/// What the script of the library does with the word at the cursor: bash calls it empty after a `:`.
const WORD: &str = "words[COMP_CWORD]=\"$2\"";
const WORD_OR_BREAK: &str = "[[ ${words[COMP_CWORD]} == [:=]* ]] || words[COMP_CWORD]=\"$2\"";
/// How the script of the library passes the words.
const INDEX: &str = "_CLAP_COMPLETE_INDEX=\"$_CLAP_COMPLETE_INDEX\" \\";

/// The library's adapter, with words as people see them.
pub struct WholeWords;

impl EnvCompleter for WholeWords {
    fn name(&self) -> &'static str {
        Bash.name()
    }

    fn is(&self, name: &str) -> bool {
        Bash.is(name)
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        bin: &str,
        completer: &str,
        into: &mut dyn Write,
    ) -> io::Result<()> {
        let mut script = Vec::new();
        Bash.write_registration(var, name, bin, completer, &mut script)?;
        let line = format!("{LINE}=\"${{COMP_LINE:0:${{COMP_POINT:-0}}}}\" \\\n        {INDEX}");
        let script = String::from_utf8_lossy(&script).replace(WORD, WORD_OR_BREAK).replace(INDEX, &line);
        into.write_all(script.as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        words: Vec<OsString>,
        directory: Option<&Path>,
        into: &mut dyn Write,
    ) -> io::Result<()> {
        let variable = |name: &str| env::var(name).unwrap_or_default();
        let index = variable("_CLAP_COMPLETE_INDEX").parse().unwrap_or_default();
        let words: Vec<String> = words.into_iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let joined = join(&words, index, &variable(LINE));
        let words = joined.words.into_iter().map(OsString::from).collect();
        let found = engine::complete(command, words, joined.index, directory)?;
        let values = found.iter().map(|candidate| candidate.get_value().to_string_lossy());
        // Bash replaces only what follows the last break.
        let values: Vec<String> =
            values.filter_map(|value| Some(value.strip_prefix(&joined.before)?.to_owned())).collect();
        into.write_all(values.join(&variable("_CLAP_IFS")).as_bytes())
    }
}

/// The words as people see them.
#[derive(Debug, PartialEq, Eq)]
struct Joined {
    words: Vec<String>,
    /// Which of them is completed.
    index: usize,
    /// The part of that word that bash does not replace.
    before: String,
}

/// Joins words that have no blank between them in the line up to the cursor.
fn join(words: &[String], index: usize, line: &str) -> Joined {
    let mut joined = Joined { words: Vec::new(), index, before: String::new() };
    let mut rest = line;
    for (number, word) in words.iter().enumerate().take(index + 1) {
        let follows = number > 1 && rest.starts_with(word.as_str()) && (!word.is_empty() || rest.is_empty());
        match joined.words.last_mut().filter(|_| follows && !line.is_empty()) {
            Some(last) => {
                joined.before.clone_from(last);
                last.push_str(word);
                // After a break, the word is empty to bash.
                if word.chars().all(|letter| ":=".contains(letter)) {
                    joined.before.clone_from(last);
                }
            }
            None => {
                joined.before.clear();
                joined.words.push(word.clone());
            }
        }
        rest = rest.find(word.as_str()).map_or(rest, |at| &rest[at + word.len()..]);
    }
    joined.index = joined.words.len().saturating_sub(1);
    joined.words.extend(words.iter().skip(index + 1).cloned());
    joined
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_are_joined_as_they_are_written() {
        for (line, words, expect, before) in [
            ("banger vm cp web:/e", &["banger", "vm", "cp", "web", ":", "/e"][..], "web:/e", "web:"),
            ("banger vm cp web:", &["banger", "vm", "cp", "web", ":"], "web:", "web:"),
            ("banger vm cp web: ", &["banger", "vm", "cp", "web", ":", ""], "", ""),
            ("banger vm cp web", &["banger", "vm", "cp", "web"], "web", ""),
            (
                "banger ps --filter state=r",
                &["banger", "ps", "--filter", "state", "=", "r"],
                "state=r",
                "state=",
            ),
            (
                "banger ps --filter=state=",
                &["banger", "ps", "--filter", "=", "state", "="],
                "--filter=state=",
                "--filter=state=",
            ),
            ("banger  vm   stop w", &["banger", "vm", "stop", "w"], "w", ""),
            // Without a line, the words are as they are.
            ("", &["banger", "vm", "cp", "web", ":"], ":", ""),
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let joined = join(&words, words.len() - 1, line);
            assert_eq!(
                (joined.words[joined.index].as_str(), joined.before.as_str()),
                (expect, before),
                "{line}"
            );
        }
    }

    #[test]
    fn words_after_the_cursor_stay() {
        let words = ["banger", "vm", "cp", "a", ":", "b", "c"].map(str::to_owned);
        let joined = join(&words, 5, "banger vm cp a:b");
        assert_eq!(joined.words, ["banger", "vm", "cp", "a:b", "c"]);
        assert_eq!(joined.index, 3);
    }

    #[test]
    fn the_script_of_the_library_has_the_parts_that_are_replaced() {
        let mut script = Vec::new();
        WholeWords.write_registration("V", "banger", "banger", "banger", &mut script).unwrap();
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains(WORD_OR_BREAK) && script.contains(LINE), "{script}");
    }
}
