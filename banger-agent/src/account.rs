//! Users of the guest, read from its files: a static program cannot use the guest's name services.

use std::{collections::HashMap, fs, io, path::Path};

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
const DEFAULT_SHELL: &str = "/bin/sh";

/// Returns the names of all users, of several with the same number the first. Root has one in any image.
pub fn names() -> HashMap<u32, String> {
    parse_names(&fs::read_to_string(PASSWD).unwrap_or_default())
}

fn parse_names(passwd: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in passwd.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(uid))) = (fields.next(), fields.nth(1).map(str::parse)) {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names.entry(0).or_insert_with(|| "root".to_owned());
    names
}

impl Account {
    /// Finds the user with this login name or number, optionally followed by a colon and a group. Root exists even in
    /// an image without users, and so does every number: as in containers, it needs no entry.
    pub fn find(user: &str) -> io::Result<Option<Self>> {
        let read = |path: &str| match fs::read_to_string(Path::new(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other,
        };
        Ok(Self::parse(user, &read(PASSWD)?, &read(GROUP)?))
    }

    fn parse(user: &str, passwd: &str, group: &str) -> Option<Self> {
        let (user, own_group) = user.split_once(':').map_or((user, None), |(user, own)| (user, Some(own)));
        let number: Option<u32> = user.parse().ok();
        let found = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
            let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
            if name != user && number != Some(uid) {
                return None;
            }
            let shell = if shell.is_empty() { DEFAULT_SHELL } else { shell };
            let (name, home, shell) = (name.to_owned(), home.to_owned(), shell.to_owned());
            Some(Self { name, uid, gid, groups: Vec::new(), home, shell })
        });
        let mut account = match found {
            Some(account) => account,
            None if user == "root" || number == Some(0) => Self {
                name: "root".to_owned(),
                uid: 0,
                gid: 0,
                groups: Vec::new(),
                home: "/root".to_owned(),
                shell: DEFAULT_SHELL.to_owned(),
            },
            None => Self {
                name: user.to_owned(),
                uid: number?,
                gid: 0,
                groups: Vec::new(),
                home: "/".to_owned(),
                shell: DEFAULT_SHELL.to_owned(),
            },
        };
        if let Some(own) = own_group {
            let named = group.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let [name, _, gid, _] = fields[..] else { return None };
                (name == own).then(|| gid.parse().ok())?
            });
            account.gid = named.or_else(|| own.parse().ok())?;
        }
        account.groups = group
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let [_, _, gid, members] = fields[..] else { return None };
                members.split(',').any(|member| member == account.name).then(|| gid.parse().ok())?
            })
            .collect();
        Some(account)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:100::/home/ann:\n";
    const GROUPS: &str = "root:x:0:\nsudo:x:27:bob,ann\nvideo:x:44:ann\nannex:x:45:annex\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let ann = Account::parse("ann", USERS, GROUPS).unwrap();
        assert_eq!((ann.uid, ann.gid, ann.groups.as_slice()), (1000, 100, &[27, 44][..]));
        assert_eq!(ann.shell, DEFAULT_SHELL);
        assert_eq!(Account::parse("1000", USERS, GROUPS), Some(ann));
        assert_eq!(Account::parse("root", USERS, GROUPS).unwrap().shell, "/bin/bash");
        assert_eq!(Account::parse("eve", USERS, GROUPS), None);
        let gid = |user: &str| Account::parse(user, USERS, GROUPS).map(|account| (account.uid, account.gid));
        assert_eq!(gid("ann:video"), Some((1000, 44)));
        assert_eq!(gid("1000:7"), Some((1000, 7)));
        assert_eq!(gid("4242"), Some((4242, 0)));
        assert_eq!(gid("4242:4243"), Some((4242, 4243)));
        assert_eq!(gid("ann:no-such-group"), None);
    }

    #[test]
    fn every_number_has_its_first_name_and_root_always_one() {
        let names = parse_names("ann:x:1000:100::/home/ann:\nbroken\nann2:x:1000:100::/:\nx:x:many:0::/:\n");
        let expect = [(0, "root"), (1000, "ann")].map(|(uid, name)| (uid, name.to_owned()));
        assert_eq!(names, expect.into());
        assert_eq!(parse_names("toor:x:0:0::/:\n")[&0], "toor");
    }

    #[test]
    fn root_needs_no_file() {
        let root = Account::parse("root", "", "").unwrap();
        assert_eq!((root.uid, root.home.as_str()), (0, "/root"));
    }
}
