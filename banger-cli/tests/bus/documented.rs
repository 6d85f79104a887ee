//! The documents' commands that change nothing and name no object run as they are written.

use super::host::Host;

#[path = "../documented/mod.rs"]
mod documents;

/// The beginnings of commands that work on any host.
const WORK_ANYWHERE: [&str; 8] =
    ["ps", "ls", "list", "vm list", "schema", "completion", "config show", "image list"];

#[test]
fn documented_commands_that_need_nothing_run() {
    let host = Host::new();
    let mut number = 0;
    let mut wrong = Vec::new();
    for command in documents::all() {
        let line = command.words.join(" ");
        let begins = |begin: &&str| line == **begin || line.starts_with(&format!("{begin} "));
        // The service of the tests has one user.
        let is_for_all = command.words.iter().any(|word| word == "--all-users");
        if is_for_all || !WORK_ANYWHERE.iter().any(begins) {
            continue;
        }
        let words: Vec<&str> = command.words.iter().map(String::as_str).collect();
        let ended = host.banger(&words);
        if ended.status != 0 {
            wrong.push(format!("{}: banger {line}: {ended:?}", command.place));
        }
        number += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(number >= 10, "only {number} commands ran");
}
