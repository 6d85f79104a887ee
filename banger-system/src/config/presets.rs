//! Egress presets: files NAME.toml of the package and of the administrator, each with a list `allow`.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use banger_domain::egress::{
    entry::{Entry, WrongEntry},
    preset::{Presets, WrongPresetName},
};
use banger_proto::causes::with_causes;
use serde::Deserialize;

/// The directories with presets: the package's, and the administrator's, which count more.
pub const DIRECTORIES: [&str; 2] = ["/usr/share/banger/egress", "/etc/banger/egress.d"];
/// More than a preset needs.
const MAX_FILE: u64 = 64 << 10;
const SUFFIX: &str = ".toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PresetFile {
    /// The entries.
    allow: Vec<String>,
}

/// Why a preset cannot be used.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Name(#[from] WrongPresetName),
    #[error("cannot read it")]
    Read(#[from] io::Error),
    #[error("it is not valid TOML with a list `allow` of texts")]
    Parse(#[from] toml::de::Error),
    #[error(transparent)]
    Entry(#[from] WrongEntry),
}

/// Reads the presets in these directories. A file that cannot be used is logged and among the faults. It is a preset that
/// allows nothing, also if an earlier directory has one of its name, which may allow more.
pub fn read(directories: &[impl AsRef<Path>]) -> Presets {
    let mut presets = Presets::default();
    for directory in directories {
        let directory = directory.as_ref();
        let files = match fs::read_dir(directory) {
            Ok(files) => files,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    note_fault(&mut presets, directory, &error.into());
                }
                continue;
            }
        };
        for path in files.flatten().map(|file| file.path()) {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            // Other files are notes and backups.
            let Some(name) = file.strip_suffix(SUFFIX) else { continue };
            let name = match Presets::parse_name(name) {
                Ok(name) => name,
                Err(error) => {
                    note_fault(&mut presets, &path, &Error::from(error));
                    continue;
                }
            };
            let entries = entries(&path).unwrap_or_else(|error| {
                note_fault(&mut presets, &path, &error);
                Vec::new()
            });
            presets.add(name, entries);
        }
    }
    presets
}

/// Logs what is wrong with a file, and adds it to the faults. Every user may read these, and not every user the file, of which
/// the causes have parts.
fn note_fault(presets: &mut Presets, path: &Path, error: &Error) {
    let path = path.display();
    tracing::error!(%path, error = with_causes(error), "cannot use an egress preset");
    let why = match error {
        Error::Name(error) => error.to_string(),
        Error::Entry(_) => "it has an entry that no policy can have".to_owned(),
        Error::Read(_) | Error::Parse(_) => error.to_string(),
    };
    presets.add_fault(format!("cannot use {path}: {why}"));
}

fn entries(path: &Path) -> Result<Vec<Entry>, Error> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    let file: PresetFile = toml::from_str(&text)?;
    Ok(file.allow.iter().map(|entry| entry.parse()).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_domain::{
        egress::{Egress, allow_list::AllowList},
        name::Name,
    };

    use super::*;

    #[test]
    fn the_presets_of_the_package_are_valid_and_name_each_other() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/egress");
        let presets = read(&[&directory]);
        let names: Vec<&str> = presets.names().map(Name::as_str).collect();
        assert_eq!(names, ["debian", "git", "github", "go", "node", "packages", "python", "rust"]);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), names.len(), "a file cannot be used");
        assert_eq!(presets.faults(), Vec::<String>::new());
        for name in names {
            let policy = Egress::parse(&[name]).unwrap();
            assert!(!AllowList::of(&policy, &presets).is_empty(), "{name}");
            for entry in entries(&directory.join(format!("{name}.toml"))).unwrap() {
                assert_eq!(presets.missing_in(&Egress::of(vec![entry])), None, "in {name}");
            }
        }
    }

    #[test]
    fn files_of_the_administrator_count_more_and_wrong_ones_allow_nothing() {
        let (package, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |directory: &tempfile::TempDir, name: &str, text: &str| {
            fs::write(directory.path().join(name), text).unwrap();
        };
        write(&package, "git.toml", "allow = ['a.example']");
        write(&package, "rust.toml", "allow = ['b.example']");
        write(&own, "git.toml", "allow = ['c.example']");
        write(&own, "rust.toml", "allow = ['*.secret']");
        write(&own, "typo.toml", "allow = 'secret'");
        write(&own, "README", "no preset");
        write(&own, "Work_1.toml", "allow = ['d.example']");
        write(&own, "all.toml", "allow = ['d.example']");
        let presets = read(&[package.path(), own.path()]);
        let mut faults: Vec<String> = presets
            .faults()
            .iter()
            .map(|fault| fault.replace(&own.path().display().to_string(), "/own"))
            .collect();
        faults.sort();
        assert_eq!(faults.len(), 4, "{faults:?}");
        for (fault, file) in faults.iter().zip(["Work_1", "all", "rust", "typo"]) {
            assert!(fault.starts_with(&format!("cannot use /own/{file}.toml: ")), "{fault}");
            assert!(!fault.contains('\n') && !fault.contains("secret"), "{fault}");
        }
        assert_eq!(presets.names().map(Name::as_str).collect::<Vec<_>>(), ["git", "rust", "typo"]);
        let list = AllowList::of(&Egress::parse(&["git"]).unwrap(), &presets);
        assert!(!list.ports_of(&"c.example".parse().unwrap()).is_empty());
        assert!(list.ports_of(&"a.example".parse().unwrap()).is_empty());
        for wrong in ["rust", "typo"] {
            assert!(AllowList::of(&Egress::parse(&[wrong]).unwrap(), &presets).is_empty(), "{wrong}");
        }
    }
}
