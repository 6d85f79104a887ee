//! Chooses the locale of commands: the user's if the guest has it, else the guest's own, else C.UTF-8, so that names
//! with non-ASCII letters are displayed.
//!
//! setlocale(3) fails completely if one of the variables names a missing locale, so those are left out.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use banger_proto::guest::{Exec, message::is_locale};

/// Every Linux image of recent years has it, and it is no worse than none.
const FALLBACK: &str = "C.UTF-8";
/// Where glibc keeps its locales: a directory each, and an archive with many.
const LOCALES: &str = "usr/lib/locale";
const ARCHIVE: &str = "locale-archive";
/// Where distributions keep the system's locale (locale.conf(5)).
const DEFAULTS: [&str; 2] = ["etc/locale.conf", "etc/default/locale"];
/// The names in an archive with all locales of the world take 60 KiB.
const MAX_NAMES: u64 = 4 << 20;
const MAX_DEFAULTS: u64 = 64 << 10;

/// Adds locale variables to a command, before its own, which override them.
pub fn complete(mut exec: Exec) -> Exec {
    let variables = variables(Path::new("/"), &exec.locale, &exec.env);
    exec.env.splice(0..0, variables);
    exec
}

/// Returns the locale variables to add: none if the image or the user sets any, so that they are not mixed.
fn variables(root: &Path, sent: &[(String, String)], said: &[(String, String)]) -> Vec<(String, String)> {
    if said.iter().any(|(name, _)| name == "LANG" || name.starts_with("LC_")) {
        return Vec::new();
    }
    let guest = Locales::of(root);
    let sent = sent.iter().take(Exec::MAX_LOCALE).filter(|(name, value)| is_locale(name, value));
    let mut set: Vec<_> = sent.filter(|(_, value)| guest.has(value)).cloned().collect();
    if !set.iter().any(|(name, _)| name == "LANG") {
        let own = default_of(root).filter(|name| guest.has(name));
        set.push(("LANG".to_owned(), own.unwrap_or_else(|| FALLBACK.to_owned())));
    }
    set
}

/// Returns the system's locale.
fn default_of(root: &Path) -> Option<String> {
    DEFAULTS.iter().find_map(|file| {
        let mut text = String::new();
        File::open(root.join(file)).ok()?.take(MAX_DEFAULTS).read_to_string(&mut text).ok()?;
        let value =
            text.lines().find_map(|line| line.trim().strip_prefix("LANG="))?.trim_matches(['"', '\'']);
        is_locale("LANG", value).then(|| value.to_owned())
    })
}

/// The locales of a guest.
struct Locales<'a> {
    root: &'a Path,
    /// musl accepts every name, and uses UTF-8 for each.
    takes_all: bool,
    /// The names in the archive, each between two zero bytes.
    archived: Vec<u8>,
}

impl<'a> Locales<'a> {
    fn of(root: &'a Path) -> Self {
        let takes_all = fs::read_dir(root.join("lib")).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("ld-musl-"))
            })
        }) && !root.join(LOCALES).exists();
        let archived = archived(&root.join(LOCALES).join(ARCHIVE)).unwrap_or_default();
        Self { root, takes_all, archived }
    }

    fn has(&self, name: &str) -> bool {
        if self.takes_all || matches!(name, "C" | "POSIX") {
            return true;
        }
        [name, &normalized(name)].into_iter().any(|name| {
            let needle = [b"\0", name.as_bytes(), b"\0"].concat();
            self.root.join(LOCALES).join(name).is_dir()
                || self.archived.windows(needle.len()).any(|window| window == needle)
        })
    }
}

/// Normalises a name as glibc does: of the codeset, only letters and digits count, in lower case.
fn normalized(name: &str) -> String {
    let (name, modifier) = name.split_once('@').map_or((name, None), |(name, more)| (name, Some(more)));
    let mut normalized = match name.split_once('.') {
        None => name.to_owned(),
        Some((language, codeset)) => {
            let plain: String = codeset.chars().filter(char::is_ascii_alphanumeric).collect();
            let iso = if plain.bytes().all(|b| b.is_ascii_digit()) { "iso" } else { "" };
            format!("{language}.{iso}{}", plain.to_ascii_lowercase())
        }
    };
    if let Some(modifier) = modifier {
        normalized.push('@');
        normalized.push_str(modifier);
    }
    normalized
}

/// Reads the names in an archive of locales. Its header consists of 32-bit numbers in native byte order; the sixth
/// and seventh are the offset and the length of the names (`locarhead` in glibc).
fn archived(path: &Path) -> io::Result<Vec<u8>> {
    const MAGIC: u32 = 0xde02_0109;
    let file = File::open(path)?;
    let mut head = [0; 7 * 4];
    file.read_exact_at(&mut head, 0)?;
    let number = |index: usize| {
        let bytes = [head[index * 4], head[index * 4 + 1], head[index * 4 + 2], head[index * 4 + 3]];
        u32::from_ne_bytes(bytes)
    };
    let (offset, length) = (u64::from(number(5)), u64::from(number(6)));
    if number(0) != MAGIC || length > MAX_NAMES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut names = vec![0; 1 + length as usize];
    file.read_exact_at(&mut names[1..], offset)?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn root(directories: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in directories {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        root
    }

    fn pairs(text: &str) -> Vec<(String, String)> {
        text.split_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn check(root: &Path, sent: &str, said: &str, expect: &str) {
        assert_eq!(variables(root, &pairs(sent), &pairs(said)), pairs(expect), "{sent:?} {said:?}");
    }

    #[test]
    fn known_locales_of_the_user_are_kept() {
        let root = root(&["usr/lib/locale/C.utf8", "usr/lib/locale/de_DE.utf8"]);
        let root = root.path();
        check(root, "", "", "LANG=C.UTF-8");
        check(root, "LANG=de_DE.UTF-8 LC_TIME=C", "", "LANG=de_DE.UTF-8 LC_TIME=C");
        check(root, "LANG=fr_FR.UTF-8 LC_TIME=de_DE.UTF-8", "", "LC_TIME=de_DE.UTF-8 LANG=C.UTF-8");
        check(root, "LANG=C", "", "LANG=C");
        check(root, "LC_ALL=../../../etc PATH=C LANG=..", "", "LANG=C.UTF-8");
    }

    #[test]
    fn explicit_locales_are_left_alone() {
        let root = root(&["usr/lib/locale/de_DE.utf8"]);
        check(root.path(), "LANG=de_DE.UTF-8", "A=b LANG=C", "");
        check(root.path(), "LANG=de_DE.UTF-8", "LC_ALL=xx_YY", "");
        check(root.path(), "LANG=de_DE.UTF-8", "A=b", "LANG=de_DE.UTF-8");
    }

    #[test]
    fn the_systems_own_locale_comes_before_the_fallback() {
        let root = root(&["etc/default", "usr/lib/locale/nb_NO.utf8"]);
        fs::write(root.path().join("etc/default/locale"), "# x\nLANG=\"nb_NO.UTF-8\"\n").unwrap();
        check(root.path(), "LANG=fr_FR.UTF-8", "", "LANG=nb_NO.UTF-8");
        fs::write(root.path().join("etc/locale.conf"), "LANG=se_NO.UTF-8\n").unwrap();
        check(root.path(), "", "", "LANG=C.UTF-8");
    }

    #[test]
    fn musl_takes_every_locale() {
        let root = root(&["lib/ld-musl-x86_64.so.1"]);
        check(root.path(), "LANG=fr_FR.UTF-8", "", "LANG=fr_FR.UTF-8");
    }

    #[test]
    fn an_archive_is_searched_and_a_broken_one_has_nothing() {
        let root = root(&[LOCALES]);
        let archive = root.path().join(LOCALES).join(ARCHIVE);
        let names = b"af_ZA.utf8\0en_US.utf8\0";
        let head = [0xde02_0109, 0, 0, 0, 0, 40, names.len() as u32, 0, 0, 0].map(u32::to_ne_bytes).concat();
        fs::write(&archive, [&head[..], names].concat()).unwrap();
        check(root.path(), "LANG=en_US.UTF-8", "", "LANG=en_US.UTF-8");
        check(root.path(), "LANG=af_ZA.UTF-8", "", "LANG=af_ZA.UTF-8");
        check(root.path(), "LANG=US.UTF-8", "", "LANG=C.UTF-8");
        fs::write(&archive, [&head[..], b"en_US"].concat()).unwrap();
        check(root.path(), "LANG=en_US.UTF-8", "", "LANG=C.UTF-8");
        let huge = [0xde02_0109, 0, 0, 0, 0, 40, u32::MAX, 0, 0, 0].map(u32::to_ne_bytes).concat();
        fs::write(&archive, huge).unwrap();
        check(root.path(), "LANG=en_US.UTF-8", "", "LANG=C.UTF-8");
    }

    #[test]
    fn codesets_are_compared_as_the_c_library_does() {
        for (name, expect) in [
            ("de_DE.UTF-8", "de_DE.utf8"),
            ("de_DE.ISO-8859-15@euro", "de_DE.iso885915@euro"),
            ("ru_RU.8859-5", "ru_RU.iso88595"),
            ("de_DE", "de_DE"),
        ] {
            assert_eq!(normalized(name), expect);
        }
    }
}
