//! Prevents programs of the image from configuring the interface again: it gets its addresses and routes before any
//! of them starts, and nothing on its link would assign others.
//!
//! A program gets a file only if it is installed, and below `/run` if it reads that, so that nothing remains in the
//! image.

use std::io;

use banger_proto::guest::config::GuestFile;

use crate::{
    apply,
    managed_block::{Markers, Position},
};

const NETWORKD: &[&str] = &["/usr/lib/systemd/systemd-networkd", "/lib/systemd/systemd-networkd"];
const NETWORK_MANAGER: &[&str] = &["/usr/sbin/NetworkManager", "/usr/bin/NetworkManager"];
/// The configuration of ifupdown, ifupdown-ng and busybox.
const IFUPDOWN: &[&str] = &["/etc/network/interfaces"];
const DHCPCD: &[&str] = &["/usr/sbin/dhcpcd", "/usr/bin/dhcpcd", "/sbin/dhcpcd"];
/// dhcpcd reads nothing below `/run`.
const DHCPCD_CONFIG: &str = "/etc/dhcpcd.conf";
const MARKERS: Markers = Markers {
    begin: "# What stands between these lines is written by banger at each boot.",
    end: "# The end of what banger has written.",
};

/// The interface, as these programs identify it.
#[derive(Debug, Clone)]
pub struct Interface<'a> {
    /// Its name, such as `eth0`.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// Writes a file for every program that is installed below `root`; `run` is the path of `/run` until the root is
/// switched. Returns the problems.
pub fn apply(root: &str, run: &str, interface: &Interface<'_>) -> Vec<String> {
    let mut problems = apply::files(run, &files(interface, |path| apply::exists(root, path)));
    if DHCPCD.iter().any(|path| apply::exists(root, path))
        && let Err(error) = configure_dhcpcd(root, interface)
    {
        problems.push(format!("cannot write {DHCPCD_CONFIG}: {error}"));
    }
    problems
}

/// Returns the files below `/run` for the installed programs.
fn files(interface: &Interface<'_>, is_there: impl Fn(&str) -> bool) -> Vec<GuestFile> {
    let name = interface.name;
    let mac = interface.mac.map(|byte| format!("{byte:02x}")).join(":");
    let rows = [
        (
            NETWORKD,
            "/run/systemd/network/00-banger.network",
            format!("[Match]\nMACAddress={mac}\n\n[Link]\nUnmanaged=yes\n"),
        ),
        (
            NETWORK_MANAGER,
            "/run/NetworkManager/conf.d/00-banger.conf",
            format!(
                "[keyfile]\nunmanaged-devices+=mac:{mac}\n\n[device-banger]\nmatch-device=mac:{mac}\nmanaged=0\n"
            ),
        ),
        // An interface in this file counts as up, and is not brought up again.
        (IFUPDOWN, "/run/network/ifstate", format!("{name}={name}\n")),
        (IFUPDOWN, "/run/ifstate", format!("{name}={name}\n")),
    ];
    let wanted = rows.into_iter().filter(|(programs, ..)| programs.iter().any(|program| is_there(program)));
    wanted.map(|(_, path, content)| GuestFile { path: path.to_owned(), mode: 0o644, content }).collect()
}

/// Adds a block at the top, because lines after an `interface` line apply to that interface only.
fn configure_dhcpcd(root: &str, interface: &Interface<'_>) -> io::Result<()> {
    let old = apply::read(root, DHCPCD_CONFIG)?.unwrap_or_default();
    let old = String::from_utf8(old).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let new = MARKERS.put(&old, Position::Top, &format!("denyinterfaces {}\n", interface.name));
    if new == old {
        return Ok(());
    }
    apply::write(root, &GuestFile { path: DHCPCD_CONFIG.to_owned(), mode: 0o644, content: new })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    const INTERFACE: Interface<'_> = Interface { name: "eth0", mac: [0x02, 0x67, 0, 0, 0, 0x0a] };

    fn paths(there: &[&str]) -> Vec<String> {
        files(&INTERFACE, |path| there.contains(&path)).into_iter().map(|file| file.path).collect()
    }

    #[test]
    fn only_installed_programs_get_a_file() {
        assert_eq!(paths(&[]), Vec::<String>::new());
        assert_eq!(paths(&["/lib/systemd/systemd-networkd"]), ["/run/systemd/network/00-banger.network"]);
        assert_eq!(paths(&["/usr/sbin/NetworkManager"]), ["/run/NetworkManager/conf.d/00-banger.conf"]);
        assert_eq!(paths(&["/etc/network/interfaces"]), ["/run/network/ifstate", "/run/ifstate"]);
    }

    #[test]
    fn the_interface_is_named_by_its_address_or_its_name() {
        let all = files(&INTERFACE, |_| true);
        assert!(all[0].content.contains("MACAddress=02:67:00:00:00:0a\n"), "{}", all[0].content);
        assert!(all[1].content.contains("match-device=mac:02:67:00:00:00:0a\n"), "{}", all[1].content);
        assert_eq!(all[2].content, "eth0=eth0\n");
    }

    #[test]
    fn dhcpcd_gets_one_block_in_its_own_file() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/sbin")).unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("usr/sbin/dhcpcd"), "").unwrap();
        fs::write(root.path().join("etc/dhcpcd.conf"), "interface x\nstatic y\n").unwrap();
        let text = root.path().to_str().unwrap();
        for _ in 0..2 {
            assert_eq!(apply(text, text, &INTERFACE), Vec::<String>::new());
            let config = fs::read_to_string(root.path().join("etc/dhcpcd.conf")).unwrap();
            let expect =
                format!("{}\ndenyinterfaces eth0\n{}\ninterface x\nstatic y\n", MARKERS.begin, MARKERS.end);
            assert_eq!(config, expect);
        }
        assert!(!root.path().join("run").exists());
    }
}
