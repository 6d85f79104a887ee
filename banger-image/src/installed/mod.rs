//! Kernels that a distribution has installed on a host, or that were unpacked below a directory. Only names are looked
//! at: whether guests boot a kernel is known after its import.

pub mod modules;

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Parents of modules directories: since `/lib` became a link to `/usr/lib`, packages use either path.
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];

/// An installed kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledKernel {
    /// What `uname -r` prints when it runs.
    pub release: String,
    /// The file that a boot loader loads.
    pub vmlinuz: PathBuf,
    /// The directory of its modules, if there is one.
    pub modules: Option<PathBuf>,
}

/// Finds the kernel with this release and its modules, in the layouts of distributions: Debian and derivatives use
/// `/boot`, Fedora `/boot` and the modules directory, Arch the modules directory only.
pub fn find(root: &Path, release: &str) -> Option<InstalledKernel> {
    let modules = MODULES.map(|parent| root.join(parent).join(release));
    let modules = modules.iter().find(|path| path.is_dir());
    let with_modules = modules.map(|modules| modules.join("vmlinuz"));
    let candidates = [Some(root.join(format!("boot/vmlinuz-{release}"))), with_modules];
    let vmlinuz = candidates.into_iter().flatten().find(|path| path.is_file())?;
    Some(InstalledKernel { release: release.to_owned(), vmlinuz, modules: modules.cloned() })
}

/// Returns the releases of all kernels below a root, in the order of their names.
pub fn releases(root: &Path) -> Vec<String> {
    let of_boot = names(root.join("boot")).into_iter();
    let of_boot = of_boot.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned));
    let all: BTreeSet<String> = of_boot.chain(with_modules(root)).collect();
    all.into_iter().filter(|release| find(root, release).is_some()).collect()
}

/// Returns the kernel for guests: the running one, unless it lacks its modules and another one has them; else the
/// newest. After an upgrade, a distribution may have removed the files of the running kernel.
pub fn best(root: &Path, running: &str) -> Option<InstalledKernel> {
    let found = releases(root).into_iter().filter_map(|release| find(root, &release));
    found.max_by_key(|kernel| {
        (
            kernel.modules.is_some(),
            kernel.release == running,
            version(&kernel.release),
            Reverse(kernel.release.len()),
        )
    })
}

/// Returns why there is no kernel below a root.
pub fn missing(root: &Path, running: &str) -> String {
    let modules: Vec<String> = with_modules(root).collect();
    let shown = |path: &str| root.join(path).display().to_string();
    let places = format!(
        "there is no {} and no vmlinuz in {}",
        shown(&format!("boot/vmlinuz-{running}")),
        shown(&format!("usr/lib/modules/{running}"))
    );
    match modules.is_empty() {
        true => places,
        false => format!("{places}; there are only the modules of {}", modules.join(", ")),
    }
}

/// Returns the releases that have a directory of modules, or of headers alone.
fn with_modules(root: &Path) -> impl Iterator<Item = String> {
    let all: BTreeSet<String> = MODULES.into_iter().flat_map(|parent| names(root.join(parent))).collect();
    all.into_iter()
}

fn names(directory: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A part of a release: numbers are compared as such, so that 6.10 is newer than 6.9.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Text(String),
    Number(u64),
}

fn version(release: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = release;
    while let Some(first) = rest.chars().next() {
        let is_number = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != is_number).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        parts.push(match is_number {
            true => Part::Number(part.parse().unwrap_or(u64::MAX)),
            false => Part::Text(part.to_owned()),
        });
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Creates files, and checks which kernel with which modules a host that runs `running` gives to guests.
    fn check(files: &[&str], running: &str, expect: Option<(&str, Option<&str>)>) {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let below = |path: PathBuf| path.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned();
        let best =
            best(root.path(), running).map(|kernel| (below(kernel.vmlinuz), kernel.modules.map(below)));
        let expect = expect.map(|(vmlinuz, modules)| (vmlinuz.to_owned(), modules.map(str::to_owned)));
        assert_eq!(best, expect, "{running} of {files:?}");
    }

    #[test]
    fn guests_get_the_running_kernel_of_each_distribution() {
        let debian = [
            "boot/vmlinuz-6.1.0-41-cloud-amd64",
            "boot/vmlinuz-6.1.0-42-cloud-amd64",
            "usr/lib/modules/6.1.0-41-cloud-amd64/modules.dep",
            "usr/lib/modules/6.1.0-42-cloud-amd64/modules.dep",
        ];
        let modules = "usr/lib/modules/6.1.0-41-cloud-amd64";
        check(&debian, "6.1.0-41-cloud-amd64", Some((debian[0], Some(modules))));
        let ubuntu = ["boot/vmlinuz-6.8.0-60-generic", "lib/modules/6.8.0-60-generic/modules.dep"];
        check(&ubuntu, "6.8.0-60-generic", Some((ubuntu[0], Some("lib/modules/6.8.0-60-generic"))));
        let fedora = [
            "boot/vmlinuz-0-rescue-2f3a",
            "boot/vmlinuz-6.13.5-200.fc41.x86_64",
            "usr/lib/modules/6.13.5-200.fc41.x86_64/vmlinuz",
        ];
        let modules = "usr/lib/modules/6.13.5-200.fc41.x86_64";
        check(&fedora, "6.13.5-200.fc41.x86_64", Some((fedora[1], Some(modules))));
        let arch = ["boot/vmlinuz-linux", "usr/lib/modules/6.13.6-arch1-1/vmlinuz"];
        check(&arch, "6.13.6-arch1-1", Some((arch[1], Some("usr/lib/modules/6.13.6-arch1-1"))));
    }

    #[test]
    fn without_the_files_of_the_running_kernel_guests_get_the_newest_one() {
        // Arch removes the running kernel during an upgrade.
        let arch = ["usr/lib/modules/6.9.6-arch1-1/vmlinuz", "usr/lib/modules/6.10.1-arch1-1/vmlinuz"];
        check(&arch, "6.8.1-arch1-1", Some((arch[1], Some("usr/lib/modules/6.10.1-arch1-1"))));
        // Headers, and the modules of a kernel that is gone.
        let debian = [
            "boot/vmlinuz-6.1.0-9-amd64",
            "boot/vmlinuz-6.1.0-10-amd64",
            "lib/modules/6.1.0-9-amd64/modules.dep",
            "lib/modules/6.1.0-10-amd64/modules.dep",
            "lib/modules/6.1.0-11-amd64/build/Makefile",
        ];
        check(&debian, "6.1.0-8-amd64", Some((debian[1], Some("lib/modules/6.1.0-10-amd64"))));
        // A kernel of the host's own, whose drivers may be built in, and one of a package.
        let custom = ["boot/vmlinuz-6.12.0", "boot/vmlinuz-6.1.0-9-amd64", "lib/modules/6.1.0-9-amd64/x.ko"];
        check(&custom, "6.12.0", Some((custom[1], Some("lib/modules/6.1.0-9-amd64"))));
        check(&custom[..1], "6.12.0", Some((custom[0], None)));
    }

    #[test]
    fn a_host_without_a_kernel_says_what_is_missing() {
        check(&[], "6.1", None);
        check(&["lib/modules/6.1/x.ko"], "6.1", None);
        let root = tempfile::tempdir().unwrap();
        let prefix = root.path().display();
        let why = missing(root.path(), "6.1");
        assert_eq!(
            why,
            format!("there is no {prefix}/boot/vmlinuz-6.1 and no vmlinuz in {prefix}/usr/lib/modules/6.1")
        );
        fs::create_dir_all(root.path().join("lib/modules/6.2")).unwrap();
        let why = missing(root.path(), "6.1");
        assert!(why.ends_with("; there are only the modules of 6.2"), "{why}");
    }
}
