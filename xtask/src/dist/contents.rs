//! What is in each package, whatever its format: the client, the service, the symbols of each, and the Cockpit page.

use std::{collections::BTreeSet, fs, io::Write, path::Path};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};

use super::{copyright, crates, crates::Crate, libraries::Libraries, sbom, symbols};
use crate::{
    build::{Programs, install},
    run::{command, output, repository},
};

/// The version of all packages.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The package of the client.
pub const CLIENT: &str = "banger";
/// The package of the service.
pub const SERVICE: &str = "banger-system";
/// The package of the Cockpit page, which has no programs and is for every architecture.
pub const COCKPIT: &str = "banger-cockpit";

/// The format of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Debian's.
    Deb,
    /// Fedora's and openSUSE's.
    Rpm,
}

/// A file in a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path below the root.
    pub path: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

impl File {
    /// Reads a file that is installed under a path.
    pub fn read(from: &Path, path: &str, mode: u32) -> Result<Self> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(Self { path: path.into(), content, mode })
    }
}

/// A package that is not yet packed.
pub struct Package {
    /// [`CLIENT`], [`SERVICE`] or [`COCKPIT`].
    pub owner: &'static str,
    /// Whether it has the symbols of the programs of `owner`, and nothing else.
    pub is_symbols: bool,
    /// Its files, by path.
    pub files: Vec<File>,
    /// What its programs need.
    pub libraries: Libraries,
}

impl Package {
    /// Returns the name in a format.
    pub fn name(&self, format: Format) -> String {
        match (self.is_symbols, format) {
            (false, _) => self.owner.to_owned(),
            (true, Format::Deb) => format!("{}-dbgsym", self.owner),
            (true, Format::Rpm) => format!("{}-debuginfo", self.owner),
        }
    }

    /// Returns the summary and the description.
    pub fn description(&self) -> (String, &'static str) {
        match (self.is_symbols, self.owner) {
            (true, owner) => (
                format!("debug symbols for {owner}"),
                "Debuggers find these symbols by the build id of a program, or by its path.\n\
                 With them, a backtrace has functions and lines.",
            ),
            (false, CLIENT) => (
                "one-command development sandboxes on microVMs".into(),
                "A sandbox is a virtual machine with its own kernel, made in one command.\n\
                 This is the command; the service that runs sandboxes is in banger-system.",
            ),
            (false, COCKPIT) => (
                "Cockpit page for development sandboxes on microVMs".into(),
                "The page shows the sandboxes of the user who has logged in to Cockpit. It\n\
                 creates, starts, stops and deletes them, and opens terminals in them.",
            ),
            (false, _) => (
                "service for development sandboxes on microVMs".into(),
                "It runs sandboxes of all users of a host under QEMU or Firecracker, each\n\
                 confined in a unit of its own, and offers them on the system bus.",
            ),
        }
    }

    /// Returns the directories that only this package has, parents first.
    pub fn directories(&self) -> Vec<String> {
        let mut all = BTreeSet::new();
        for file in &self.files {
            let parents = Path::new(&file.path).ancestors().skip(1).map(|path| path.display().to_string());
            all.extend(parents.filter(|path| is_ours(path)));
        }
        all.into_iter().collect()
    }
}

/// Whether no other package has this directory.
fn is_ours(directory: &str) -> bool {
    directory.split('/').any(|part| part.starts_with("banger"))
}

/// What all packages of a format are made of, besides programs.
pub struct Common {
    /// The crates in the programs.
    pub crates: Vec<Crate>,
    /// Their copyright, and ours.
    pub copyright: String,
    /// The bill of materials.
    pub sbom: String,
    /// The version of Debian packages.
    pub version: String,
}

impl Common {
    /// Collects it from the sources.
    pub fn collect() -> Result<Self> {
        let crates = crates::linked()?;
        let copyright = copyright::text(&crates)?;
        let sbom = sbom::text(VERSION, &crates);
        Ok(Self { crates, copyright, sbom, version: VERSION.to_owned() })
    }
}

/// Returns all packages of a format with these programs.
pub fn packages(programs: &Programs, format: Format, common: &Common) -> Result<[Package; 5]> {
    let order = [(CLIENT, false), (SERVICE, false), (CLIENT, true), (SERVICE, true), (COCKPIT, false)];
    let mut packages = order.map(|(owner, is_symbols)| Package {
        owner,
        is_symbols,
        files: Vec::new(),
        libraries: Libraries::default(),
    });
    for (from, to, mode) in install::all(programs)? {
        let path = placed(&to.to_string_lossy(), format);
        let owner = owner_of(&path);
        let at =
            order.iter().position(|place| *place == (owner, false)).context("no package has this owner")?;
        if mode == 0o755 {
            let (program, symbols) = symbols::split(&from, &path, mode)?;
            packages[at].libraries.add(&from)?;
            packages[at].files.push(program);
            // The agent is built without any.
            if from != programs.agent {
                packages[at + 2].files.push(symbols);
            }
        } else {
            packages[at].files.push(File::read(&from, &path, mode)?);
        }
    }
    packages[1].files.push(File {
        path: format!("usr/share/doc/{SERVICE}/sbom.cdx.json"),
        content: common.sbom.clone().into_bytes(),
        mode: 0o644,
    });
    for package in &mut packages {
        package.files.extend(documents(package, format, common)?);
        package.files.sort_by(|a, b| a.path.cmp(&b.path));
        let paths: BTreeSet<&str> = package.files.iter().map(|file| &*file.path).collect();
        ensure!(paths.len() == package.files.len(), "a file is in {} twice", package.name(format));
    }
    Ok(packages)
}

/// Returns which package has a path.
fn owner_of(path: &str) -> &'static str {
    if path.starts_with("usr/share/cockpit/") {
        return COCKPIT;
    }
    let of_the_client = path.starts_with("usr/bin/banger")
        || path.starts_with("usr/lib/systemd/user/banger-e2b.")
        || path.contains("/banger-notify")
        || path.starts_with("usr/share/man/man1/")
        || path.starts_with("usr/share/doc/banger/");
    match of_the_client || COMPLETIONS.iter().any(|directory| path.starts_with(directory)) {
        true => CLIENT,
        false => SERVICE,
    }
}

/// The directories of completions.
const COMPLETIONS: [&str; 4] = [
    "usr/share/bash-completion/",
    "usr/share/fish/",
    "usr/share/zsh/vendor-completions/",
    "usr/share/zsh/site-functions/",
];

/// Returns where a format has a file that Debian has at `path`.
fn placed(path: &str, format: Format) -> String {
    match format {
        Format::Deb => path.to_owned(),
        Format::Rpm => path.replace("zsh/vendor-completions", "zsh/site-functions"),
    }
}

/// Returns the documents that a distribution wants in every package.
fn documents(package: &Package, format: Format, common: &Common) -> Result<Vec<File>> {
    let name = package.name(format);
    let plain = |path: String, content: Vec<u8>| File { path, content, mode: 0o644 };
    let copyright = match package.owner {
        COCKPIT => copyright::of_the_page()?,
        _ => common.copyright.clone(),
    };
    let copyright = copyright.into_bytes();
    match format {
        // Debian's packages of symbols have nothing else.
        Format::Deb if package.is_symbols => Ok(Vec::new()),
        Format::Deb => {
            let mut files = vec![
                plain(format!("usr/share/doc/{name}/copyright"), copyright),
                plain(format!("usr/share/doc/{name}/changelog.gz"), compressed(&changelog()?)?),
            ];
            let overrides = repository().join(format!("packaging/deb/{name}.lintian-overrides"));
            if overrides.exists() {
                files.push(File::read(&overrides, &format!("usr/share/lintian/overrides/{name}"), 0o644)?);
            }
            Ok(files)
        }
        Format::Rpm => {
            let directory = format!("usr/share/licenses/{name}");
            let mut files = vec![plain(format!("{directory}/copyright"), copyright)];
            for license in ["LICENSE-APACHE", "LICENSE-MIT"] {
                files.push(File::read(
                    &repository().join(license),
                    &format!("{directory}/{license}"),
                    0o644,
                )?);
            }
            Ok(files)
        }
    }
}

/// Returns a changelog in Debian's form, which names the version and where the changes are.
fn changelog() -> Result<String> {
    let at = format!("@{}", super::source_date()?);
    let date = output(command("date", ["--utc", "--rfc-email", "--date"]).arg(at).env("LC_ALL", "C"))?;
    Ok(format!(
        "banger ({VERSION}) unstable; urgency=medium\n\n  * See CHANGELOG.md in the sources.\n\n -- {}  {}\n",
        super::MAINTAINER,
        date.trim()
    ))
}

fn compressed(text: &str) -> Result<Vec<u8>> {
    let mut writer = GzBuilder::new().write(Vec::new(), Compression::best());
    writer.write_all(text.as_bytes())?;
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_has_what_users_call_and_read() {
        for (path, owner) in [
            ("usr/bin/banger", CLIENT),
            ("usr/bin/banger-e2b", CLIENT),
            ("usr/lib/systemd/user/banger-e2b.socket", CLIENT),
            ("usr/share/man/man1/banger-e2b.1.gz", CLIENT),
            ("usr/share/man/man1/banger.1.gz", CLIENT),
            ("usr/share/man/man8/banger-system.8.gz", SERVICE),
            ("usr/share/fish/vendor_completions.d/banger.fish", CLIENT),
            ("usr/share/zsh/site-functions/_banger", CLIENT),
            ("usr/share/doc/banger/schemas/version.json", CLIENT),
            ("usr/share/doc/banger-system/sbom.cdx.json", SERVICE),
            ("usr/libexec/banger-system", SERVICE),
            ("usr/libexec/banger/banger-notify", CLIENT),
            ("usr/lib/systemd/user/banger-notify.service", CLIENT),
            ("usr/share/cockpit/banger/vendor/xterm.js", COCKPIT),
            ("usr/share/dbus-1/system.d/dev.banger.Manager1.conf", SERVICE),
        ] {
            assert_eq!(owner_of(path), owner, "{path}");
        }
        let zsh = "usr/share/zsh/vendor-completions/_banger";
        assert_eq!(placed(zsh, Format::Deb), zsh);
        assert_eq!(placed(zsh, Format::Rpm), "usr/share/zsh/site-functions/_banger");
    }

    #[test]
    fn a_package_has_the_directories_that_no_other_has() {
        let file = |path: &str| File { path: path.into(), content: Vec::new(), mode: 0o644 };
        let package = Package {
            owner: SERVICE,
            is_symbols: false,
            files: vec![file("usr/share/banger/recipes/a.toml"), file("usr/lib/sysusers.d/banger.conf")],
            libraries: Libraries::default(),
        };
        assert_eq!(package.directories(), ["usr/share/banger", "usr/share/banger/recipes"]);
    }
}
