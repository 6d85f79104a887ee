//! Makes the tables of depmod(8), by which `modprobe`, the kernel and udev find modules. They are built from the
//! modules themselves, since a package has no such tables.
//!
//! busybox reads the text tables; kmod reads those that end in `.bin`, in which names have `_` instead of `-`.

use std::collections::{BTreeMap, BTreeSet};

use banger_proto::size::Bytes;

use super::{
    elf,
    module_file::{ModInfo, name_of, normal_name},
    modules::index,
    trie::{self, Entry},
};

/// A distribution's kernel with all drivers has tables of about 8 MiB.
const MAX_TEXT: Bytes = Bytes::mib(32);
/// The modules of distributions need up to 40 others.
const MAX_NEEDED: usize = 512;
/// The longest alias, from a table of mainboard names, has about 200 bytes.
const MAX_KEY: usize = 1024;

/// Why the tables cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A file is not a kernel module. Nothing was added.
    #[error("this is not a kernel module")]
    NotAModule(#[source] elf::Error),
    /// They would be larger than those of any kernel.
    #[error("the modules have more than {MAX_TEXT} of names, aliases and dependencies")]
    TooLarge,
    /// A module depends on too many others.
    #[error("module {0} needs more than {MAX_NEEDED} others")]
    TooManyNeeded(String),
}

/// The modules of a kernel.
#[derive(Debug, Default)]
pub struct Depmod {
    /// By their paths below the directory of the release.
    modules: BTreeMap<String, Facts>,
    text: u64,
}

#[derive(Debug, Default)]
struct Facts {
    name: String,
    depends: Vec<String>,
    aliases: Vec<String>,
    softdeps: Vec<String>,
    symbols: Vec<String>,
}

/// Files that a kernel's build puts beside its modules, if they exist.
#[derive(Debug, Default)]
pub struct Beside {
    /// `modules.builtin`: the paths of built-in modules.
    pub builtin: String,
    /// `modules.builtin.modinfo`: their metadata, each line terminated by a NUL.
    pub builtin_modinfo: Vec<u8>,
}

/// A table: the name of its file, and its content.
pub type Table = (&'static str, Vec<u8>);

impl Depmod {
    /// Adds a module that is not compressed.
    pub fn add(&mut self, path: &str, content: &[u8]) -> Result<(), Error> {
        let info = ModInfo::parse(content).map_err(Error::NotAModule)?;
        let facts = Facts {
            name: name_of(path).unwrap_or_default(),
            depends: info.depends().filter(|name| is_key(name)).collect(),
            aliases: info.all("alias").filter(|alias| is_key(alias)).map(str::to_owned).collect(),
            softdeps: info.all("softdep").filter(|text| is_line(text)).map(str::to_owned).collect(),
            symbols: info.exported().filter(|symbol| is_key(symbol)).map(str::to_owned).collect(),
        };
        let texts = [&facts.depends, &facts.aliases, &facts.softdeps, &facts.symbols];
        // Each becomes a line with the name of the module.
        let length = |text: &String| (text.len() + facts.name.len()) as u64;
        self.text += texts.into_iter().flatten().map(length).sum::<u64>();
        if self.text > MAX_TEXT.0 {
            return Err(Error::TooLarge);
        }
        self.modules.insert(path.to_owned(), facts);
        Ok(())
    }

    /// Returns the tables, sorted by name.
    pub fn tables(&self, beside: &Beside) -> Result<Vec<Table>, Error> {
        let present = index(self.modules.keys().map(String::as_str));
        // If two files have the same name, `modprobe` loads one.
        let chosen: Vec<(&str, &Facts)> =
            present.values().map(|path| (path.as_str(), &self.modules[path])).collect();

        let (mut dep, mut dep_bin) = (String::new(), Vec::new());
        for (path, facts) in &chosen {
            let mut line = format!("{path}:");
            for needed in self.needed(&facts.name, &present)? {
                line.extend([" ", needed]);
            }
            if (dep.len() + line.len()) as u64 > MAX_TEXT.0 {
                return Err(Error::TooLarge);
            }
            dep.extend([&line, "\n"]);
            dep_bin.push(Entry { key: facts.name.clone(), priority: 0, value: line });
        }

        let mut aliases = Aliases::new("# Aliases of modules.\n");
        let mut symbols = Aliases::new("# Symbols that modules export.\n");
        let mut softdep = "# Soft dependencies of modules.\n".to_owned();
        let mut devname = "# Device nodes that load a module when they are opened.\n".to_owned();
        for (_, facts) in &chosen {
            facts.aliases.iter().for_each(|alias| aliases.add(alias, &facts.name));
            facts.symbols.iter().for_each(|symbol| symbols.add(&format!("symbol:{symbol}"), &facts.name));
            softdep.extend(facts.softdeps.iter().map(|rest| format!("softdep {} {rest}\n", facts.name)));
            devname.extend(device_node(facts));
        }

        let key_alone = |key: String| Entry { key, priority: 0, value: String::new() };
        let builtin = beside.builtin.lines().filter_map(name_of).filter(|name| is_key(name));
        let mut builtin_aliases = Aliases::new("");
        for (name, alias) in builtin_aliases_of(&beside.builtin_modinfo) {
            builtin_aliases.add(&alias, &name);
        }
        let bin = |entries| trie::write(entries).ok_or(Error::TooLarge);
        Ok(vec![
            ("modules.alias", aliases.text.into()),
            ("modules.alias.bin", bin(aliases.entries)?),
            ("modules.builtin.alias.bin", bin(builtin_aliases.entries)?),
            ("modules.builtin.bin", bin(builtin.map(key_alone).collect())?),
            ("modules.dep", dep.into()),
            ("modules.dep.bin", bin(dep_bin)?),
            ("modules.devname", devname.into()),
            ("modules.softdep", softdep.into()),
            ("modules.symbols", symbols.text.into()),
            ("modules.symbols.bin", bin(symbols.entries)?),
        ])
    }

    /// Returns the paths of all modules that must be loaded before this one, in reverse order of loading. Missing
    /// ones count as built in.
    fn needed<'a>(
        &'a self,
        name: &'a str,
        present: &'a BTreeMap<String, String>,
    ) -> Result<Vec<&'a str>, Error> {
        let depends = |name: &str| &self.modules[&present[name]].depends;
        let (mut seen, mut way, mut order) = (BTreeSet::from([name]), vec![(name, 0)], Vec::new());
        while let Some((name, next)) = way.pop() {
            match depends(name).get(next) {
                Some(needed) => {
                    way.push((name, next + 1));
                    if let Some((needed, _)) = present.get_key_value(needed)
                        && seen.insert(needed)
                    {
                        way.push((needed, 0));
                    }
                }
                None => order.push(present[name].as_str()),
            }
            if seen.len() > MAX_NEEDED + 1 {
                return Err(Error::TooManyNeeded(name.to_owned()));
            }
        }
        order.pop();
        order.reverse();
        Ok(order)
    }
}

/// Aliases of modules.
struct Aliases {
    text: String,
    entries: Vec<Entry>,
}

impl Aliases {
    fn new(heading: &str) -> Self {
        Self { text: heading.to_owned(), entries: Vec::new() }
    }

    fn add(&mut self, alias: &str, name: &str) {
        self.text.push_str(&format!("alias {alias} {name}\n"));
        self.entries.push(Entry { key: normal_alias(alias), priority: 0, value: name.to_owned() });
    }
}

/// Returns whether text can be a key and a word in a line.
fn is_key(text: &str) -> bool {
    (1..=MAX_KEY).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_line(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

/// Returns the alias as kmod looks it up: with `_` for `-`, except in a range such as `[0-9]`.
fn normal_alias(alias: &str) -> String {
    let mut is_range = false;
    let normal = |c| {
        is_range = (is_range || c == '[') && c != ']';
        if c == '-' && !is_range { '_' } else { c }
    };
    alias.chars().map(normal).collect()
}

/// Returns the line of a module with a device node of its own, such as `fuse fuse c10:229`.
fn device_node(facts: &Facts) -> Option<String> {
    let name = facts.aliases.iter().find_map(|alias| alias.strip_prefix("devname:"))?;
    let number = |alias: &String| {
        let kinds = [("char-major-", 'c'), ("block-major-", 'b')];
        let (rest, kind) =
            kinds.into_iter().find_map(|(start, kind)| Some((alias.strip_prefix(start)?, kind)))?;
        let (major, minor) = rest.split_once('-')?;
        Some((kind, major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    let (kind, major, minor) = facts.aliases.iter().find_map(number)?;
    Some(format!("{} {name} {kind}{major}:{minor}\n", facts.name))
}

/// Returns the aliases of built-in modules, from entries such as `ext4.alias=fs-ext4`.
fn builtin_aliases_of(modinfo: &[u8]) -> impl Iterator<Item = (String, String)> {
    modinfo.split(|&byte| byte == 0).filter_map(|entry| {
        let (name, rest) = str::from_utf8(entry).ok()?.split_once('.')?;
        let alias = rest.strip_prefix("alias=")?;
        (is_key(name) && is_key(alias)).then(|| (normal_name(name), alias.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::kernel::module;

    fn tables(modules: &[(&str, &[&str])], beside: &Beside) -> BTreeMap<&'static str, Vec<u8>> {
        let mut depmod = Depmod::default();
        for (path, modinfo) in modules {
            depmod.add(path, &module(modinfo)).unwrap();
        }
        depmod.tables(beside).unwrap().into_iter().collect()
    }

    fn check(table: &str, modules: &[(&str, &[&str])], expect: &str) {
        let text = String::from_utf8(tables(modules, &Beside::default())[table].clone()).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.join("\n"), expect, "{table}");
    }

    #[test]
    fn what_a_module_needs_is_loaded_from_the_end_of_its_line() {
        let modules: &[(&str, &[&str])] = &[
            ("kernel/net/br-netfilter.ko", &["depends=bridge"]),
            ("kernel/net/bridge.ko", &["depends=stp,llc"]),
            ("kernel/net/llc.ko", &["depends="]),
            ("kernel/net/stp.ko", &["depends=llc"]),
            ("kernel/net/odd.ko", &["depends=built-in,odd"]),
        ];
        let expect = "kernel/net/br-netfilter.ko: kernel/net/bridge.ko kernel/net/stp.ko kernel/net/llc.ko\n\
                      kernel/net/bridge.ko: kernel/net/stp.ko kernel/net/llc.ko\n\
                      kernel/net/llc.ko:\n\
                      kernel/net/odd.ko:\n\
                      kernel/net/stp.ko: kernel/net/llc.ko";
        check("modules.dep", modules, expect);
        let bin = trie::tests::read(&tables(modules, &Beside::default())["modules.dep.bin"]);
        let mut lines: Vec<&str> = bin.iter().map(|entry| entry.value.as_str()).collect();
        lines.sort();
        assert_eq!(lines.join("\n"), expect);
        assert_eq!(bin[0].key, "br_netfilter");
    }

    #[test]
    fn aliases_are_unchanged_in_text_and_normal_in_kmods_tables() {
        let modules: &[(&str, &[&str])] = &[
            ("a/fuse.ko", &["alias=devname:fuse", "alias=char-major-10-229", "alias=fs-fuse"]),
            ("a/x-y.ko", &["alias=usb:v*-[0-9]-x", "alias=two words", "alias=", "softdep=pre: crc32c"]),
            (
                "b/loop.ko",
                &["alias=devname:loop-control", "alias=block-major-7-*", "alias=char-major-10-237"],
            ),
        ];
        check(
            "modules.alias",
            modules,
            "alias devname:fuse fuse\nalias char-major-10-229 fuse\nalias fs-fuse fuse\n\
             alias devname:loop-control loop\nalias block-major-7-* loop\nalias char-major-10-237 loop\n\
             alias usb:v*-[0-9]-x x_y",
        );
        check("modules.softdep", modules, "softdep x_y pre: crc32c");
        check("modules.devname", modules, "fuse fuse c10:229\nloop loop-control c10:237");
        let bin = trie::tests::read(&tables(modules, &Beside::default())["modules.alias.bin"]);
        let has = |key: &str, value: &str| bin.iter().any(|entry| entry.key == key && entry.value == value);
        assert!(has("fs_fuse", "fuse") && has("usb:v*_[0-9]_x", "x_y") && bin.len() == 7, "{bin:?}");
    }

    #[test]
    fn built_in_modules_have_tables() {
        let beside = Beside {
            builtin: "kernel/fs/ext4/ext4.ko\nkernel/crypto/sha256-generic.ko\n".into(),
            builtin_modinfo: b"ext4.license=GPL\0ext4.alias=fs-ext4\0nothing\0\xff.alias=x\0".to_vec(),
        };
        let tables = tables(&[], &beside);
        let keys = |table: &str| {
            let entries = trie::tests::read(&tables[table]);
            entries.into_iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect::<Vec<_>>()
        };
        assert_eq!(keys("modules.builtin.bin"), ["ext4=", "sha256_generic="]);
        assert_eq!(keys("modules.builtin.alias.bin"), ["fs_ext4=ext4"]);
    }

    #[test]
    fn of_two_files_of_one_module_that_in_updates_counts() {
        let modules: &[(&str, &[&str])] = &[
            ("kernel/net/wireguard.ko", &["depends=", "alias=old"]),
            ("updates/dkms/wireguard.ko", &["depends=", "alias=new"]),
        ];
        check("modules.dep", modules, "updates/dkms/wireguard.ko:");
        check("modules.alias", modules, "alias new wireguard");
    }

    #[test]
    fn more_than_any_kernel_has_is_refused() {
        let mut depmod = Depmod::default();
        let long = vec!["alias=x".to_owned() + &"y".repeat(1000); 20_000];
        let long = module(&long.iter().map(String::as_str).collect::<Vec<_>>());
        depmod.add("a.ko", &long).unwrap();
        assert_eq!(depmod.add("b.ko", &long), Err(Error::TooLarge));
        assert!(matches!(depmod.add("c.ko", b"text"), Err(Error::NotAModule(_))));

        let mut depmod = Depmod::default();
        for number in 0..600 {
            let depends = format!("depends=m{}", number + 1);
            depmod.add(&format!("m{number}.ko"), &module(&[&depends])).unwrap();
        }
        assert!(matches!(depmod.tables(&Beside::default()), Err(Error::TooManyNeeded(_))));
    }

    proptest! {
        #[test]
        fn no_module_makes_it_panic(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..12),
            modinfo in "[ -~\\x00]{0,40}",
        ) {
            let lines = ["depends=a,b", "alias=x:*[0-9]", "alias=devname:x", "alias=char-major-1-2", &modinfo];
            let mut content = module(&lines);
            for (at, value) in flips {
                let at = at.index(content.len());
                content[at] = value;
            }
            let mut depmod = Depmod::default();
            let _ = depmod.add("kernel/a.ko", &content);
            let beside = Beside { builtin: modinfo.clone(), builtin_modinfo: content };
            let _ = depmod.tables(&beside);
        }
    }
}
