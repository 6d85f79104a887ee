//! Installs our files where a package installs them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    build::{Programs, catalog},
    dist,
    run::{cache, command, output, repository, run},
};

/// Files of the repository that are installed unchanged.
const FILES: &[(&str, &str)] = &[
    ("dbus/dev.banger.Manager1.conf", "usr/share/dbus-1/system.d/dev.banger.Manager1.conf"),
    ("dbus/dev.banger.Manager1.service", "usr/share/dbus-1/system-services/dev.banger.Manager1.service"),
    ("polkit/dev.banger.Manager1.policy", "usr/share/polkit-1/actions/dev.banger.Manager1.policy"),
    ("polkit/60-banger.rules", "usr/share/polkit-1/rules.d/60-banger.rules"),
    ("packaging/recipes/debian-bookworm.toml", "usr/share/banger/recipes/debian-bookworm.toml"),
    ("packaging/agents/claude.toml", "usr/share/banger/agents/claude.toml"),
    ("packaging/agents/codex.toml", "usr/share/banger/agents/codex.toml"),
    ("packaging/agents/gemini.toml", "usr/share/banger/agents/gemini.toml"),
    ("packaging/agents/opencode.toml", "usr/share/banger/agents/opencode.toml"),
    ("packaging/egress/debian.toml", "usr/share/banger/egress/debian.toml"),
    ("packaging/egress/git.toml", "usr/share/banger/egress/git.toml"),
    ("packaging/egress/github.toml", "usr/share/banger/egress/github.toml"),
    ("packaging/egress/go.toml", "usr/share/banger/egress/go.toml"),
    ("packaging/egress/node.toml", "usr/share/banger/egress/node.toml"),
    ("packaging/egress/packages.toml", "usr/share/banger/egress/packages.toml"),
    ("packaging/egress/python.toml", "usr/share/banger/egress/python.toml"),
    ("packaging/egress/rust.toml", "usr/share/banger/egress/rust.toml"),
    ("packaging/remove.sh", "usr/share/banger/remove.sh"),
    ("docs/skills/banger/SKILL.md", "usr/share/banger/skills/banger/SKILL.md"),
    ("packaging/recipes/schema.json", "usr/share/doc/banger/schemas/recipe.json"),
    ("packaging/agents/schema.json", "usr/share/doc/banger/schemas/agent-preset.json"),
    ("systemd/banger-system.service", "usr/lib/systemd/system/banger-system.service"),
    ("systemd/banger-autostart.service", "usr/lib/systemd/system/banger-autostart.service"),
    ("systemd/banger-autostart.conf", "usr/lib/systemd/system/multi-user.target.d/10-banger.conf"),
    ("systemd/banger-e2b.service", "usr/lib/systemd/user/banger-e2b.service"),
    ("systemd/banger-e2b.socket", "usr/lib/systemd/user/banger-e2b.socket"),
    ("systemd/banger-notify.service", "usr/lib/systemd/user/banger-notify.service"),
    ("systemd/banger.slice", "usr/lib/systemd/system/banger.slice"),
    ("systemd/banger-user.slice.conf", "usr/lib/systemd/system/banger-.slice.d/10-banger.conf"),
    ("systemd/60-banger.rules", "usr/lib/udev/rules.d/60-banger.rules"),
    ("systemd/banger.sysusers.conf", "usr/lib/sysusers.d/banger.conf"),
    ("systemd/banger.tmpfiles.conf", "usr/lib/tmpfiles.d/banger.conf"),
];

/// The completions of each shell.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/banger"),
    ("fish", "usr/share/fish/vendor_completions.d/banger.fish"),
    ("zsh", "usr/share/zsh/vendor-completions/_banger"),
];

/// Returns all installed files, with their paths below the root and modes.
pub fn all(programs: &Programs) -> Result<Vec<(PathBuf, PathBuf, u32)>> {
    let repository = repository();
    let program = |name: &str| programs.directory.join(name);
    let mut files = vec![
        (program("banger"), "usr/bin/banger".into(), 0o755),
        (program("banger-e2b"), "usr/bin/banger-e2b".into(), 0o755),
        (program("banger-system"), "usr/libexec/banger-system".into(), 0o755),
        (program("banger-shim"), "usr/libexec/banger/banger-shim".into(), 0o755),
        (program("banger-import"), "usr/libexec/banger/banger-import".into(), 0o755),
        (programs.agent.clone(), "usr/libexec/banger/banger-agent".into(), 0o755),
        (program("banger-notify"), "usr/libexec/banger/banger-notify".into(), 0o755),
    ];
    files.extend(FILES.iter().map(|(from, to)| (repository.join(from), (*to).into(), 0o644)));
    for entry in fs::read_dir(repository.join("dbus/interfaces")).context("cannot read dbus/interfaces")? {
        let entry = entry?;
        files.push((entry.path(), Path::new("usr/share/dbus-1/interfaces").join(entry.file_name()), 0o644));
    }
    files.extend(cockpit()?);
    files.extend(catalog::files()?);
    files.extend(generated(&program("banger"))?);
    Ok(files)
}

/// Returns the files of the Cockpit page. The license of what is not ours is in the package's copyright file.
fn cockpit() -> Result<Vec<(PathBuf, PathBuf, u32)>> {
    let mut files = Vec::new();
    for below in ["", "vendor"] {
        let directory = repository().join("cockpit").join(below);
        for entry in
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?
        {
            let entry = entry?;
            if entry.path().is_file() && entry.file_name() != "LICENSE" {
                let to = Path::new("usr/share/cockpit/banger").join(below).join(entry.file_name());
                files.push((entry.path(), to, 0o644));
            }
        }
    }
    Ok(files)
}

/// Generates the files that the command prints: manual, schemas and completions.
fn generated(banger: &Path) -> Result<Vec<(PathBuf, PathBuf, u32)>> {
    let mut files = Vec::new();
    let directory = cache().join("generated");
    let manual = directory.join("manual");
    if manual.exists() {
        fs::remove_dir_all(&manual).with_context(|| format!("cannot remove {}", manual.display()))?;
    }
    let banger = banger.display().to_string();
    let at = format!("@{}", dist::source_date()?);
    let date = output(command("date", ["--utc", "+%F", "--date"]).arg(at))?;
    run(command(&banger, ["manual", "--date", date.trim()]).arg(&manual))?;
    for page in ["banger-e2b.1", "banger-system.8"] {
        let from = repository().join("packaging/man").join(page);
        fs::copy(&from, manual.join(page)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    for page in fs::read_dir(&manual).context("cannot read the manual")? {
        let page = page?;
        run(command("gzip", ["-9n"]).arg(page.path()))?;
        let section = if page.file_name() == "banger-system.8" { "man8" } else { "man1" };
        let mut name = page.file_name();
        name.push(".gz");
        files.push((manual.join(&name), Path::new("usr/share/man").join(section).join(&name), 0o644));
    }
    for verb in output(&mut command(&banger, ["schema"]))?.lines() {
        let name = format!("{}.json", verb.replace(' ', "-"));
        let schema = directory.join(&name);
        fs::write(&schema, output(command(&banger, ["schema"]).args(verb.split(' ')))?)?;
        files.push((schema, Path::new("usr/share/doc/banger/schemas").join(name), 0o644));
    }
    for (shell, to) in COMPLETIONS {
        let script = directory.join(shell);
        fs::write(&script, output(&mut command(&banger, ["completion", shell]))?)?;
        files.push((script, (*to).into(), 0o644));
    }
    Ok(files)
}

/// Installs everything below `root`, and returns whether a file was changed.
pub fn into(root: &Path, programs: &Programs) -> Result<bool> {
    let mut changed = false;
    for (from, to, mode) in all(programs)? {
        let to = root.join(to);
        let content = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        if fs::read(&to).is_ok_and(|old| old == content) {
            continue;
        }
        changed = true;
        let parent = to.parent().context("a file has no directory")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        // Write a new file and rename it, because a running program cannot be written to.
        let new = to.with_extension("new");
        fs::write(&new, content).with_context(|| format!("cannot write {}", new.display()))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
        fs::rename(&new, &to).with_context(|| format!("cannot install {}", to.display()))?;
    }
    Ok(changed)
}
