//! The file with the user's settings. Mistakes are reported with their line.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    defaults::{Key, Value, Values},
    settings::FileSync,
};
use crate::ui::suggest;

/// The keys of the file that are no options of commands, and those that were keys of their own before `[defaults]`.
const OWN_KEYS: [&str; 4] = ["git_identity", "file_sync", "defaults", "profiles"];
const OLD_KEYS: [Key; 3] = [Key::AutoPrepare, Key::Timezone, Key::Wait];
/// The keys of an entry of `file_sync`.
const FILE_KEYS: [&str; 3] = ["host", "guest", "mode"];

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingsFile {
    pub git_identity: Option<bool>,
    pub file_sync: Option<Vec<FileSync>>,
    /// Options outside of `[defaults]`.
    pub top: Values,
    pub defaults: Values,
    pub profiles: BTreeMap<String, Values>,
}

impl SettingsFile {
    /// Parses the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let reader = Reader { text };
        let document = DeTable::parse(text)
            .map_err(|error| reader.at(error.span().unwrap_or_default(), error.message()))?;
        let mut file = Self::default();
        for (key, value) in document.get_ref() {
            match &**key.get_ref() {
                "git_identity" => file.git_identity = Some(reader.switch("git_identity", value)?),
                "file_sync" => file.file_sync = Some(reader.files(value)?),
                "defaults" => file.defaults = reader.options(value, "[defaults]")?,
                "profiles" => file.profiles = reader.profiles(value)?,
                name => match Key::named(name) {
                    Some(known) if OLD_KEYS.contains(&known) => {
                        file.top.insert(known, reader.option(known, value)?);
                    }
                    Some(_) => {
                        return Err(reader.at(key.span(), &format!("{name} belongs under [defaults]")));
                    }
                    None => {
                        let known = OWN_KEYS.into_iter().chain(OLD_KEYS.map(Key::name));
                        return Err(reader.unknown(name, key.span(), known, ""));
                    }
                },
            }
        }
        Ok(file)
    }
}

type Entry<'a> = Spanned<DeValue<'a>>;

struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    /// Adds the line of a mistake.
    fn at(&self, span: Range<usize>, what: &str) -> String {
        let before = self.text.get(..span.start).unwrap_or_default();
        format!("line {}: {what}", 1 + before.matches('\n').count())
    }

    fn unknown<'k>(
        &self,
        name: &str,
        span: Range<usize>,
        known: impl IntoIterator<Item = &'k str>,
        section: &str,
    ) -> String {
        let suggestion = suggest::closest(name, known);
        let suggestion = suggestion.map(|key| format!("; did you mean {key}?")).unwrap_or_default();
        self.at(span, &format!("there is no key {name}{section}{suggestion}"))
    }

    fn table<'t, 'v>(&self, name: &str, value: &'t Entry<'v>) -> Result<&'t DeTable<'v>, String> {
        let table = value.get_ref().as_table();
        table.ok_or_else(|| self.at(value.span(), &format!("{name} must be a table")))
    }

    fn switch(&self, name: &str, value: &Entry<'_>) -> Result<bool, String> {
        let switch = value.get_ref().as_bool();
        switch.ok_or_else(|| self.at(value.span(), &format!("{name} must be true or false")))
    }

    fn profiles(&self, value: &Entry<'_>) -> Result<BTreeMap<String, Values>, String> {
        let profiles = self.table("profiles", value)?.iter().map(|(name, options)| {
            let name = name.get_ref();
            Ok((name.to_string(), self.options(options, &format!("[profiles.{name}]"))?))
        });
        profiles.collect()
    }

    /// Reads the options of a section.
    fn options(&self, value: &Entry<'_>, section: &str) -> Result<Values, String> {
        let options = self.table(section, value)?.iter().map(|(key, value)| {
            let name = key.get_ref();
            let known = Key::all().map(Key::name);
            let unknown = || self.unknown(name, key.span(), known, &format!(" in {section}"));
            let key = Key::named(name).ok_or_else(unknown)?;
            Ok((key, self.option(key, value)?))
        });
        options.collect()
    }

    fn option(&self, key: Key, value: &Entry<'_>) -> Result<Value, String> {
        let list;
        let text = match value.get_ref() {
            DeValue::Array(entries) if key == Key::Egress => {
                let words: Option<Vec<&str>> = entries.iter().map(|entry| entry.get_ref().as_str()).collect();
                let words = words.ok_or_else(|| self.at(value.span(), "egress must be a list of strings"))?;
                // Nothing is a choice, too.
                list = if words.is_empty() { "none".to_owned() } else { words.join(" ") };
                list.as_str()
            }
            DeValue::Integer(number) if key.is_unquoted() && number.radix() == 10 => number.as_str(),
            DeValue::Boolean(on) if key.is_unquoted() => ["false", "true"][usize::from(*on)],
            DeValue::String(text) if !key.is_unquoted() => text.as_ref(),
            _ if key.is_unquoted() => "",
            _ => return Err(self.at(value.span(), &format!("{} must be a string in quotes", key.name()))),
        };
        let parsed = key.parse(text);
        parsed.map_err(|why| self.at(value.span(), &format!("{} is invalid: {why}", key.name())))
    }

    fn files(&self, value: &Entry<'_>) -> Result<Vec<FileSync>, String> {
        let list = value.get_ref().as_array();
        let list = list.ok_or_else(|| self.at(value.span(), "write each file as a section [[file_sync]]"))?;
        list.iter().map(|entry| self.file(entry)).collect()
    }

    fn file(&self, entry: &Entry<'_>) -> Result<FileSync, String> {
        let mut texts = BTreeMap::new();
        for (key, value) in self.table("file_sync", entry)? {
            let name = &**key.get_ref();
            if !FILE_KEYS.contains(&name) {
                return Err(self.unknown(name, key.span(), FILE_KEYS, " in [[file_sync]]"));
            }
            let text = value.get_ref().as_str();
            let text =
                text.ok_or_else(|| self.at(value.span(), &format!("{name} must be a string in quotes")))?;
            texts.insert(name, text.to_owned());
        }
        let mut required = |name: &str| {
            texts.remove(name).ok_or_else(|| self.at(entry.span(), &format!("[[file_sync]] needs {name}")))
        };
        let (host, guest) = (required("host")?, required("guest")?);
        let file = FileSync { host, guest, mode: texts.remove("mode") };
        file.check().map_err(|why| self.at(entry.span(), &why))?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn defaults_and_profiles_are_read() {
        let file = SettingsFile::parse(
            "auto_prepare = true\n[defaults]\nimage = 'debian'\nvcpus = 4\nmemory = '8GiB'\nnat = true\n\
             [profiles.small]\nmemory = '512MiB'\n[profiles.\"odd name\"]\n",
        );
        let file = file.unwrap();
        assert_eq!(file.top[&Key::AutoPrepare], Value::Switch(true));
        assert_eq!(file.defaults.len(), 4);
        assert_eq!(file.defaults[&Key::Vcpus], Value::Count(4));
        assert_eq!(
            file.profiles["small"],
            BTreeMap::from([(Key::Memory, Key::Memory.parse("512M").unwrap())])
        );
        assert!(file.profiles["odd name"].is_empty());
        let egress = |value: &str| {
            let file = SettingsFile::parse(&format!("[defaults]\negress = {value}")).unwrap();
            file.defaults[&Key::Egress].clone()
        };
        assert_eq!(egress("['git', 'a.example:443']"), Value::Text("git a.example:443".to_owned()));
        assert_eq!(egress("[]"), Value::Text("none".to_owned()));
        assert_eq!(egress("'packages'"), Value::Text("packages".to_owned()));
        assert_eq!(SettingsFile::parse("").unwrap(), SettingsFile::default());
    }

    #[test]
    fn mistakes_are_reported_with_their_line() {
        let mut all = String::new();
        for text in [
            "git_identiti = true",
            "colour = true",
            "\nimage = 'debian'",
            "[defaults]\n\nimmage = 'x'",
            "[defaults]\ncolour = 'x'",
            "[profiles.work]\nmemroy = '1GiB'",
            "[profiles.work]\nmemory = 4",
            "[defaults]\nmemory = 'lots'",
            "[defaults]\nvcpus = '4'",
            "[defaults]\nvcpus = 0",
            "[defaults]\nnat = 'yes'",
            "[defaults]\negress = [1]",
            "[defaults]\nimage = ''",
            "[defaults]\npull = 'sometimes'",
            "wait = 'soon'",
            "git_identity = 1",
            "defaults = 1",
            "profiles = []",
            "[profiles]\nwork = 1",
            "file_sync = 'x'",
            "[[file_sync]]\nhost = 'x'\nguest = '/x'",
            "[[file_sync]]\nhost = '/x'\nguest = '/a/../b'",
            "[[file_sync]]\nhost = '/x'\nguest = '/x'\nmode = 'rw'",
            "[[file_sync]]\nhost = '/x'",
            "[[file_sync]]\nhost = 1\nguest = '/x'",
            "[[file_sync]]\nhost = '/x'\nguest = '/x'\nmod = '0600'",
            "wait = 'boot'\nwait = 'init'",
            "wait =",
        ] {
            let why = SettingsFile::parse(text).unwrap_err();
            all.push_str(&format!("{text}\n  {why}\n\n"));
        }
        crate::ui::wording::check("errors_of_settings", &all);
    }
}
