//! Checks of the Cockpit page, with Cockpit itself and a browser.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{Check, run_as, run_as_root};
use crate::{host::Host, run::repository, try_it::QUICK};

pub(super) const CHECKS: &[(&str, Check)] =
    &[("the Cockpit page creates, enters, stops and deletes a sandbox, light and dark", page)];

/// Environment variable that says to keep the pictures which the browser takes.
const BLESS: &str = "BANGER_BLESS";
/// The pictures in docs/images.
const PICTURES: [&str; 3] = ["cockpit-light.png", "cockpit-dark.png", "cockpit-empty.png"];

fn page(host: &Host) -> Result<()> {
    run_as_root(host, &script!("level4/cockpit/start.sh" uses "wait.sh"))?;
    let out = run_as(host, "alice", &script!("level4/cockpit/person.py", image = QUICK));
    run_as_root(host, &["systemctl", "stop", "cockpit-of-tests"])?;
    let out = out?;
    for line in [
        "logged in",
        "sees what others create",
        "sees progress",
        "created",
        "shows an error, its cause and what to do",
        "ran a command in the terminal",
        "shows the log",
        "stopped",
        "deleted",
    ] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    PICTURES.iter().filter(|_| std::env::var_os(BLESS).is_some()).try_for_each(|name| keep(host, name))
}

/// Copies a picture from the host.
fn keep(host: &Host, name: &str) -> Result<()> {
    let picture = host.enter(&["cat", &format!("/home/alice/{name}")]).output()?;
    ensure!(picture.status.success() && !picture.stdout.is_empty(), "there is no {name}");
    fs::write(repository().join("docs/images").join(name), picture.stdout)
        .with_context(|| format!("cannot write {name}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::run::digest_of;

    /// Returns our own scripts of the page.
    fn scripts() -> Vec<(String, String)> {
        let files = fs::read_dir(repository().join("cockpit")).unwrap().map(|entry| entry.unwrap().path());
        let scripts = files.filter(|path| path.extension().is_some_and(|extension| extension == "js"));
        let scripts = scripts.map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()));
        scripts.collect()
    }

    #[test]
    fn no_text_becomes_markup_or_a_program() {
        let scripts = scripts();
        assert!(scripts.len() > 5);
        for (path, text) in scripts {
            for way in
                ["HTML", "document.write", "eval(", "new Function", "setAttribute(\"on", "srcdoc", "href"]
            {
                assert!(!text.contains(way), "{path} has {way}");
            }
        }
    }

    #[test]
    fn every_error_has_words_on_the_page() {
        let documented = fs::read_to_string(repository().join("docs/dbus.md")).unwrap();
        let names = documented
            .lines()
            .filter_map(|line| line.strip_prefix("| `dev.banger.Error.")?.split('`').next());
        let names: Vec<&str> = names.collect();
        let words = fs::read_to_string(repository().join("cockpit/errors.js")).unwrap();
        assert!(names.len() > 30);
        for name in names {
            assert!(words.contains(&format!("\n    {name}: ")), "errors.js has no {name}");
        }
    }

    #[test]
    fn the_page_knows_every_state() {
        let documented = fs::read_to_string(repository().join("docs/lifecycle.md")).unwrap();
        let table = documented.lines().skip_while(|line| !line.starts_with("| state | Start |")).skip(2);
        let rows = table.map_while(|line| line.strip_prefix("| ")?.split(' ').next());
        let ended = ["created", "suspended", "stopped", "failed", "deleting"];
        let up: Vec<&str> = rows.filter(|state| !ended.contains(state)).collect();
        assert_eq!(up.len(), 6);
        let script = fs::read_to_string(repository().join("cockpit/table.js")).unwrap();
        let known = script.lines().find(|line| line.starts_with("const UP = ")).unwrap();
        for state in up {
            assert!(known.contains(&format!("{state:?}")), "{state}");
        }
    }

    #[test]
    fn what_others_wrote_is_unchanged() {
        for (name, digest) in [
            ("xterm.js", "7a88e46a58847d3f17109e3d48cc8aa056a01997d00ceb76035f63370712d858"),
            ("addon-fit.js", "3e9ae6f6965ee1269d5574b905cf1bf559c2f44c784255b0034a71387e7719c9"),
            ("xterm.css", "ba8e6985669488981ccf40c0cefe3aba80722cb6c92de7ad628b0bd717faf2b6"),
        ] {
            assert_eq!(digest_of(&repository().join("cockpit/vendor").join(name)).unwrap(), digest, "{name}");
        }
    }
}
