//! Files that tell an image its name, its addresses and its name servers. They are generated from the configuration
//! alone and replace the image's files, including links to files of a resolver in the image, because the host answers
//! all DNS queries.

use banger_proto::guest::config::{GuestConfig, GuestFile};

/// Returns the files for `/etc`.
pub fn files(config: &GuestConfig) -> Vec<GuestFile> {
    let file = |path: &str, content: String| GuestFile { path: path.to_owned(), mode: 0o644, content };
    let mut files =
        vec![file("/etc/hostname", format!("{}\n", config.hostname)), file("/etc/hosts", hosts(config))];
    if let Some(network) = &config.network {
        let server = format!("nameserver {}\n", network.name_server);
        let search = format!("search {}\n", network.search);
        files.push(file("/etc/resolv.conf", server + &search));
    }
    files
}

/// Maps the guest's names to its own addresses, as others see them. Programs that look the name up pass the address
/// on, so a loopback address would be wrong.
fn hosts(config: &GuestConfig) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    let names = config.names.join(" ");
    match &config.network {
        Some(network) => text.push_str(&format!("{}\t{names}\n{}\t{names}\n", network.ipv4, network.ipv6)),
        None => text.push_str(&format!("127.0.1.1\t{names}\n")),
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::guest::config::{GuestNetwork, Init, Programs};

    use super::*;

    fn config(network: Option<GuestNetwork>) -> GuestConfig {
        GuestConfig {
            token: String::new(),
            hostname: "box".into(),
            names: vec!["web.vm".into(), "box".into()],
            root_device: String::new(),
            module_disk: None,
            work_disk: None,
            init: Init::Auto,
            unix_usec: 0,
            network,
            ssh: None,
            timezone: None,
            programs: Programs::default(),
            files: Vec::new(),
        }
    }

    fn content(config: &GuestConfig, path: &str) -> Option<String> {
        files(config).into_iter().find(|file| file.path == path).map(|file| file.content)
    }

    #[test]
    fn a_guest_resolves_its_names_to_its_own_addresses() {
        let network = GuestNetwork {
            mac: [2, 0, 0, 0, 0, 1],
            ipv4: "172.30.0.2".parse().unwrap(),
            gateway4: "172.30.0.1".parse().unwrap(),
            ipv6: "fd00::2".parse().unwrap(),
            gateway6: "fd00::1".parse().unwrap(),
            gateway_mac: [2, 0, 0, 0, 0, 2],
            name_server: "172.30.0.1".parse().unwrap(),
            search: "vm".into(),
        };
        let config = config(Some(network));
        let hosts = content(&config, "/etc/hosts").unwrap();
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"), "{hosts}");
        assert!(hosts.ends_with("172.30.0.2\tweb.vm box\nfd00::2\tweb.vm box\n"), "{hosts}");
        assert_eq!(content(&config, "/etc/hostname").unwrap(), "box\n");
        let resolver = content(&config, "/etc/resolv.conf").unwrap();
        assert_eq!(resolver, "nameserver 172.30.0.1\nsearch vm\n");
    }

    #[test]
    fn without_a_network_a_guest_still_resolves_its_name() {
        let config = config(None);
        assert!(content(&config, "/etc/hosts").unwrap().ends_with("127.0.1.1\tweb.vm box\n"));
        assert_eq!(content(&config, "/etc/resolv.conf"), None);
    }
}
