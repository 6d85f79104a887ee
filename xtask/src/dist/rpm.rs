//! RPM packages, packed by the crate rpm.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rpm::{BuildConfig, CompressionType, Dependency, FileOptions, PackageBuilder, Scriptlet};

use super::{
    Compression, LICENSE, MAINTAINER,
    contents::{self, CLIENT, COCKPIT, Common, File, Format, Package, SERVICE, VERSION},
    copyright, platform, source_date,
};
use crate::{build::Programs, run::repository};

/// The release of all packages of a version.
pub const RELEASE: &str = "1";
/// What the service needs besides QEMU. device-mapper contains the udev rules that our disks rely on. Without certificates,
/// no registry can be asked for the first image.
const REQUIRES: [&str; 4] = ["dbus", "polkit", "device-mapper", "ca-certificates"];
/// Needed for some verbs, and optional otherwise.
const RECOMMENDS: [(&str, &str); 4] =
    [(CLIENT, "banger-system"), (CLIENT, "git"), (CLIENT, "openssh-clients"), (SERVICE, "banger")];

/// What comes with the Cockpit page, in cockpit/vendor.
const VENDORED: [(&str, &str); 2] = [("@xterm/xterm", "5.5.0"), ("@xterm/addon-fit", "0.10.0")];

/// Builds all packages in a directory, and returns their paths.
pub fn make(
    programs: &Programs,
    directory: &Path,
    common: &Common,
    compression: Compression,
) -> Result<Vec<PathBuf>> {
    let packages = contents::packages(programs, Format::Rpm, common)?;
    let epoch: u32 = source_date()?.parse().context("SOURCE_DATE_EPOCH is not a number of seconds")?;
    let mut files = Vec::new();
    for package in &packages {
        let name = package.name(Format::Rpm);
        let built =
            build(package, common, compression, epoch).with_context(|| format!("cannot build {name}"))?;
        let file = directory.join(format!("{name}-{VERSION}-{RELEASE}.{}.rpm", architecture(package)?));
        fs::write(&file, built).with_context(|| format!("cannot write {}", file.display()))?;
        files.push(file);
    }
    Ok(files)
}

/// Returns the architecture of a package.
fn architecture(package: &Package) -> Result<&'static str> {
    if package.owner == COCKPIT { Ok("noarch") } else { Ok(platform::here()?.rpm) }
}

fn build(package: &Package, common: &Common, compression: Compression, epoch: u32) -> Result<Vec<u8>> {
    let platform = platform::here()?;
    let (summary, description) = package.description();
    let summary = capitalized(&summary);
    let license = match (package.is_symbols, package.owner) {
        (true, _) => LICENSE.to_owned(),
        (false, COCKPIT) => copyright::combined_of_the_page(),
        (false, _) => copyright::combined(&common.crates),
    };
    let mut builder =
        PackageBuilder::new(&package.name(Format::Rpm), VERSION, &license, architecture(package)?, &summary);
    let compression = match compression {
        Compression::None => CompressionType::None,
        Compression::Best => CompressionType::Gzip,
    };
    builder.using_config(BuildConfig::default().source_date(epoch).compression(compression));
    builder
        .release(RELEASE)
        .description(description)
        .packager(MAINTAINER)
        .vendor("banger")
        .build_host("localhost");
    let version = format!("{MAINTAINER} - {VERSION}-{RELEASE}");
    builder.add_changelog_entry(version, "- See CHANGELOG.md in the sources.", epoch);
    for directory in package.directories() {
        builder.with_dir_entry(FileOptions::dir(format!("/{directory}")).permissions(0o755))?;
    }
    for file in &package.files {
        builder.with_file_contents(file.content.clone(), options(file))?;
    }
    if package.is_symbols {
        builder.requires(Dependency::eq(package.owner, format!("{VERSION}-{RELEASE}")));
        return bytes(&mut builder);
    }
    if package.owner == COCKPIT {
        for name in [CLIENT, SERVICE] {
            builder.requires(Dependency::any(name));
        }
        builder.requires(Dependency::greater_eq("cockpit-bridge", "265"));
        for (name, version) in VENDORED {
            builder.provides(Dependency::eq(format!("bundled(npm({name}))"), version));
        }
        return bytes(&mut builder);
    }
    for capability in package.libraries.rpm() {
        builder.requires(Dependency::any(capability));
    }
    for part in &common.crates {
        builder.provides(Dependency::eq(format!("bundled(crate({}))", part.name), &part.version));
    }
    for (_, name) in RECOMMENDS.iter().filter(|(owner, _)| *owner == package.owner) {
        builder.recommends(Dependency::any(*name));
    }
    if package.owner == SERVICE {
        for name in REQUIRES.into_iter().chain([platform.rpm_qemu]) {
            builder.requires(Dependency::any(name));
        }
        builder.requires(Dependency::greater_eq("systemd", "252"));
        builder.post_install_script(script("post")?);
        builder.pre_uninstall_script(script("preun")?);
        builder.post_uninstall_script(script("postun")?);
    }
    bytes(&mut builder)
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn options(file: &File) -> FileOptions {
    let options = FileOptions::new(format!("/{}", file.path)).permissions(file.mode as u16);
    let options = if file.path.starts_with("usr/share/licenses/") { options.license() } else { options };
    let is_document = ["usr/share/doc/", "usr/share/man/"].iter().any(|begin| file.path.starts_with(begin));
    if is_document { options.doc().into() } else { options.into() }
}

fn script(name: &str) -> Result<Scriptlet> {
    let path = repository().join(format!("packaging/rpm/{SERVICE}.{name}"));
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Scriptlet::new(text).prog(vec!["/bin/sh"]))
}

fn bytes(builder: &mut PackageBuilder) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    builder.build()?.write(&mut bytes)?;
    Ok(bytes)
}
