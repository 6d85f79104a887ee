//! Debian packages, packed by dpkg-deb.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    Compression, MAINTAINER,
    contents::{self, CLIENT, COCKPIT, Common, Format, Package, SERVICE},
    crates::Crate,
    platform, source_date,
};
use crate::{
    build::Programs,
    run::{command, output, repository, run},
};

/// What the service needs besides QEMU. dmsetup contains the udev rules that our disks rely on. Without certificates, no
/// registry can be asked for the first image.
const DEPENDS: [&str; 5] = ["dbus", "polkitd", "systemd (>= 252)", "dmsetup", "ca-certificates"];
/// Needed for some verbs, and optional otherwise.
const RECOMMENDS: [(&str, &str); 2] =
    [(CLIENT, "banger-system, git, openssh-client (>= 1:8.5)"), (SERVICE, "banger")];
/// The scripts of the service's package.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Builds all packages in a directory, and returns their paths.
pub fn make(
    programs: &Programs,
    directory: &Path,
    common: &Common,
    compression: Compression,
) -> Result<Vec<PathBuf>> {
    let packages = contents::packages(programs, Format::Deb, common)?;
    packages.iter().map(|package| make_one(package, directory, common, compression)).collect()
}

/// What the Cockpit page needs.
const DEPENDS_OF_THE_PAGE: &str = "banger, banger-system, cockpit-bridge (>= 265)";

/// Builds the packages of the client and of the service, uncompressed.
pub fn make_without_symbols(programs: &Programs, directory: &Path, common: &Common) -> Result<Vec<PathBuf>> {
    let packages = contents::packages(programs, Format::Deb, common)?;
    let packages = packages.iter().filter(|package| !package.is_symbols && package.owner != COCKPIT);
    packages.map(|package| make_one(package, directory, common, Compression::None)).collect()
}

fn make_one(
    package: &Package,
    directory: &Path,
    common: &Common,
    compression: Compression,
) -> Result<PathBuf> {
    let name = package.name(Format::Deb);
    let tree = directory.join(format!("{name}.tree"));
    // An earlier build may have installed other files.
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    for file in &package.files {
        write(&tree.join(&file.path), &file.content, file.mode)?;
    }
    if package.is_symbols {
        // Its documents are those of its programs, on which it depends.
        let documents = tree.join("usr/share/doc");
        fs::create_dir_all(&documents).with_context(|| format!("cannot create {}", documents.display()))?;
        symlink(package.owner, documents.join(&name))
            .with_context(|| format!("cannot link the documents of {name}"))?;
    }
    let size: u64 = package.files.iter().map(|file| file.content.len() as u64).sum();
    let control = control(package, common, size.div_ceil(1024))?;
    write(&tree.join("DEBIAN/control"), control.as_bytes(), 0o644)?;
    write(&tree.join("DEBIAN/md5sums"), md5sums(package, &tree)?.as_bytes(), 0o644)?;
    if package.owner == SERVICE && !package.is_symbols {
        for script in SCRIPTS {
            let from = repository().join(format!("packaging/deb/{SERVICE}.{script}"));
            let script_text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            write(&tree.join("DEBIAN").join(script), &script_text, 0o755)?;
        }
    }
    let file = directory.join(format!("{name}_{}_{}.deb", common.version, architecture(package)?));
    pack(&tree, &file, compression, &source_date()?)?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    Ok(file)
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let parent = path.parent().context("a file has no directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Returns the architecture of a package.
fn architecture(package: &Package) -> Result<&'static str> {
    if package.owner == COCKPIT { Ok("all") } else { Ok(platform::here()?.deb) }
}

/// Returns the control file. See deb-control(5).
fn control(package: &Package, common: &Common, kibibytes: u64) -> Result<String> {
    let platform = platform::here()?;
    let (summary, description) = package.description();
    let mut fields = vec![
        ("Package", package.name(Format::Deb)),
        ("Source", CLIENT.to_owned()),
        ("Version", common.version.clone()),
        ("Architecture", architecture(package)?.to_owned()),
        ("Maintainer", MAINTAINER.to_owned()),
        ("Installed-Size", kibibytes.to_string()),
    ];
    if package.name(Format::Deb) == CLIENT {
        fields.retain(|(name, _)| *name != "Source");
    }
    if package.is_symbols {
        fields.extend([
            ("Depends", format!("{} (= {})", package.owner, common.version)),
            ("Section", "debug".into()),
            ("Priority", "optional".into()),
            ("Auto-Built-Package", "debug-symbols".into()),
        ]);
        let ids = build_ids(package);
        if !ids.is_empty() {
            fields.push(("Build-Ids", ids));
        }
    } else if package.owner == COCKPIT {
        fields.extend([
            ("Depends", DEPENDS_OF_THE_PAGE.into()),
            ("Section", "admin".into()),
            ("Priority", "optional".into()),
        ]);
    } else {
        let mut depends = package.libraries.deb()?;
        if package.owner == SERVICE {
            depends.extend(DEPENDS.map(str::to_owned));
            depends.push(platform.deb_qemu.to_owned());
        }
        let recommends = RECOMMENDS.iter().filter(|(owner, _)| *owner == package.owner);
        fields.extend([
            ("Depends", depends.join(", ")),
            ("Recommends", recommends.map(|(_, names)| *names).collect()),
            ("Section", "admin".into()),
            ("Priority", "optional".into()),
            ("X-Cargo-Built-Using", built_using(&common.crates)),
        ]);
    }
    let description = description.replace('\n', "\n ");
    fields.push(("Description", format!("{summary}\n {description}")));
    Ok(fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect())
}

/// Names the crates in the programs, as packages that debcargo builds do.
fn built_using(crates: &[Crate]) -> String {
    let name = |part: &Crate| part.name.replace('_', "-").to_lowercase();
    let all = crates.iter().map(|part| format!("rust-{} (= {})", name(part), part.version));
    all.collect::<Vec<_>>().join(", ")
}

fn build_ids(package: &Package) -> String {
    let ids = package.files.iter().filter_map(|file| {
        let id = file.path.strip_prefix("usr/lib/debug/.build-id/")?.strip_suffix(".debug")?;
        Some(id.replace('/', ""))
    });
    ids.collect::<Vec<_>>().join(" ")
}

fn md5sums(package: &Package, tree: &Path) -> Result<String> {
    output(command("md5sum", package.files.iter().map(|file| &file.path)).current_dir(tree))
}

/// Packs a tree with times not later than `epoch`, in seconds.
fn pack(tree: &Path, package: &Path, compression: Compression, epoch: &str) -> Result<()> {
    let compression = match compression {
        Compression::None => "-Znone",
        Compression::Best => "-Zxz",
    };
    // Modes of directories come from the umask.
    for directory in fs::read_dir(tree)?.flatten() {
        make_readable(&directory.path())?;
    }
    let mut build = command("dpkg-deb", ["--root-owner-group", compression, "--build"]);
    // Threads divide the content by their number.
    build.arg("--threads-max=1").env("SOURCE_DATE_EPOCH", epoch);
    run(build.arg(tree).arg(package))
}

/// Makes a directory and all below it readable for all.
fn make_readable(directory: &Path) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(directory)? {
        make_readable(&entry?.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs::File,
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::dist::{contents::VERSION, libraries::Libraries};

    #[test]
    fn the_same_files_give_the_same_package() {
        let build = |age: u64, names: [&str; 3], directory: &Path| {
            let tree = directory.join("tree");
            for name in names {
                let path = tree.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(
                    &path,
                    "Package: banger\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n",
                )
                .unwrap();
                let time = SystemTime::now() - Duration::from_secs(age);
                File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            }
            let package = directory.join("package.deb");
            pack(&tree, &package, Compression::Best, "1700000000").unwrap();
            fs::read(package).unwrap()
        };
        let directory = || tempfile::tempdir().unwrap();
        let names = ["DEBIAN/control", "usr/bin/a", "usr/share/b"];
        let first = build(10, names, directory().path());
        assert_eq!(first, build(5000, [names[2], names[1], names[0]], directory().path()));
        assert_ne!(first, build(10, [names[0], names[1], "usr/share/c"], directory().path()));
    }

    #[test]
    fn the_client_recommends_the_service_and_symbols_depend_on_their_programs() {
        let common = Common {
            crates: vec![Crate {
                name: "a_crate".into(),
                version: "1.0.0".into(),
                license: "MIT".into(),
                copyright: Vec::new(),
                checksum: None,
                repository: None,
            }],
            copyright: String::new(),
            sbom: String::new(),
            version: VERSION.to_owned(),
        };
        let control = |owner, is_symbols| {
            let package = Package { owner, is_symbols, files: Vec::new(), libraries: Libraries::default() };
            control(&package, &common, 7).unwrap()
        };
        let client = control(CLIENT, false);
        assert!(client.contains("Package: banger\nVersion: ") && client.contains("Installed-Size: 7\n"));
        assert!(client.contains("Recommends: banger-system, git, "), "{client}");
        assert!(client.contains("X-Cargo-Built-Using: rust-a-crate (= 1.0.0)\n"), "{client}");
        assert!(control(SERVICE, false).contains("dmsetup, ca-certificates, qemu-system-"));
        let page = control(COCKPIT, false);
        assert!(page.contains("Architecture: all\n") && page.contains("cockpit-bridge"), "{page}");
        let symbols = control(SERVICE, true);
        assert!(symbols.contains("Package: banger-system-dbgsym\nSource: banger\n"), "{symbols}");
        assert!(symbols.contains(&format!("Depends: banger-system (= {VERSION})\n")), "{symbols}");
    }
}
