//! Files that tell an image its name, its addresses and its name servers. They are generated from the configuration
//! alone and replace the image's files, including links to files of a resolver in the image, because the host answers
//! all DNS queries.

use banger_proto::guest::config::{GuestFile, GuestNetwork};

/// Returns the files for `/etc`.
pub fn files(hostname: &str, names: &[String], network: Option<&GuestNetwork>) -> Vec<GuestFile> {
    let file = |path: &str, content: String| GuestFile { path: path.to_owned(), mode: 0o644, content };
    let mut files =
        vec![file("/etc/hostname", format!("{hostname}\n")), file("/etc/hosts", hosts(names, network))];
    if let Some(network) = network {
        let server = format!("nameserver {}\n", network.name_server);
        let search = format!("search {}\n", network.search);
        files.push(file("/etc/resolv.conf", server + &search));
    }
    files
}

/// Maps the guest's names to its own addresses, as others see them. Programs that look the name up pass the address
/// on, so a loopback address would be wrong.
fn hosts(names: &[String], network: Option<&GuestNetwork>) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    let names = names.join(" ");
    match network {
        Some(network) => text.push_str(&format!("{}\t{names}\n{}\t{names}\n", network.ipv4, network.ipv6)),
        None => text.push_str(&format!("127.0.1.1\t{names}\n")),
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn content(network: Option<&GuestNetwork>, path: &str) -> Option<String> {
        let names = ["web.vm".to_owned(), "box".to_owned()];
        files("box", &names, network).into_iter().find(|file| file.path == path).map(|file| file.content)
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
        let network = Some(&network);
        let hosts = content(network, "/etc/hosts").unwrap();
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"), "{hosts}");
        assert!(hosts.ends_with("172.30.0.2\tweb.vm box\nfd00::2\tweb.vm box\n"), "{hosts}");
        assert_eq!(content(network, "/etc/hostname").unwrap(), "box\n");
        let resolver = content(network, "/etc/resolv.conf").unwrap();
        assert_eq!(resolver, "nameserver 172.30.0.1\nsearch vm\n");
    }

    #[test]
    fn without_a_network_a_guest_still_resolves_its_name() {
        assert!(content(None, "/etc/hosts").unwrap().ends_with("127.0.1.1\tweb.vm box\n"));
        assert_eq!(content(None, "/etc/resolv.conf"), None);
    }
}
