//! The commands of banger in the code blocks of the documents.

use std::{fs, path::Path};

/// What ends a command on a line of a shell.
const ENDS: [&str; 8] = ["&&", "||", "|", ";", "&", ">", "<", "2>"];

/// A command in a document.
#[derive(Debug, PartialEq, Eq)]
pub struct Documented {
    /// The document and the line in it.
    pub place: String,
    /// The words after `banger`.
    pub words: Vec<String>,
}

/// Returns the commands of all documents.
pub fn all() -> Vec<Documented> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut pages = vec![repository.join("README.md"), repository.join("CONTRIBUTING.md")];
    let docs = fs::read_dir(repository.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    pages.push(repository.join("docs/skills/banger/SKILL.md"));
    pages.sort();
    let commands = pages.iter().flat_map(|page| {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        in_text(&name, &fs::read_to_string(page).unwrap())
    });
    commands.collect()
}

/// Returns the commands in the code blocks of a text. Panics at one in an indented block, which would not be found.
pub fn in_text(page: &str, text: &str) -> Vec<Documented> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            let commands = in_line(line.trim_start().trim_start_matches("$ "));
            found.extend(
                commands.into_iter().map(|words| Documented { place: format!("{page}:{number}"), words }),
            );
        } else {
            assert!(!line.starts_with("    banger "), "{page}:{number}: put ``` around the indented block");
        }
    }
    found
}

/// Returns the words after each `banger` that begins a command.
fn in_line(line: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut command: Vec<String> = Vec::new();
    let mut end = |command: &mut Vec<String>| {
        let words = std::mem::take(command);
        if words.first().is_some_and(|program| program == "banger") {
            commands.push(words[1..].to_vec());
        }
    };
    for word in shlex::Shlex::new(line) {
        if ENDS.contains(&word.as_str()) {
            end(&mut command);
        } else if let Some(last) = word.strip_suffix(';') {
            command.push(last.to_owned());
            end(&mut command);
        } else {
            command.push(word);
        }
    }
    end(&mut command);
    commands
}

#[test]
fn commands_are_found_in_code_blocks_only() {
    let text = "banger no\n```\nbanger ls; banger logs web | grep x  # a comment\n$ sudo -u a true && banger exec w -- sh -c 'a; b'\n```\nbanger no\n";
    let words: Vec<String> = in_text("a.md", text).iter().map(|found| found.words.join(",")).collect();
    assert_eq!(words, ["ls", "logs,web", "exec,w,--,sh,-c,a; b"]);
}

#[test]
#[should_panic(expected = "a.md:2: put ``` around the indented block")]
fn a_command_in_an_indented_block_is_refused() {
    in_text("a.md", "Text:\n    banger ls\n");
}
