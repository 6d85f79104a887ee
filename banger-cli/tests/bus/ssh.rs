//! The programs that ssh runs, against the real service, whose simulated guests greet every client.

use std::{
    fs,
    io::{IoSliceMut, Read},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use crate::{
    host::{Ended, Host},
    real::host_with_image,
};

/// Receives the descriptor on the socket where ssh waits for its proxy.
fn received(socket: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut buffers, &mut ancillary, RecvFlags::empty()).unwrap();
    match ancillary.drain().next() {
        Some(RecvAncillaryMessage::ScmRights(mut passed)) => passed.next(),
        _ => None,
    }
}

fn proxy(host: &Host, arguments: &[&str]) -> (Ended, Option<OwnedFd>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = host.command(&[&["ssh-proxy"], arguments].concat());
    let output = command.stdout(OwnedFd::from(theirs)).output().unwrap();
    drop(command);
    let ended = Ended {
        status: output.status.code().unwrap(),
        output: String::new(),
        errors: String::from_utf8(output.stderr).unwrap(),
    };
    let passed = received(&ours);
    (ended, passed)
}

#[test]
fn ssh_gets_a_connection_and_the_key_to_expect() {
    let Some(host) = host_with_image() else { return };
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "web"]).status, 0);
    let (ended, stream) = proxy(&host, &["web.vm", "22"]);
    assert_eq!((ended.status, ended.errors.as_str()), (0, ""));
    let mut said = String::new();
    UnixStream::from(stream.unwrap()).read_to_string(&mut said).unwrap();
    assert_eq!(said, "SSH-2.0-memory\r\n");

    let known = host.banger(&["ssh-known-hosts", "web.vm"]);
    let shown: Value = serde_json::from_str(&host.banger(&["vm", "show", "--json", "web"]).output).unwrap();
    let key = shown["ssh_host_key"].as_str().unwrap();
    assert_eq!((known.status, known.output), (0, format!("web.vm {key}\n")));
}

#[test]
fn unreachable_hosts_are_refused_with_hints() {
    let Some(host) = host_with_image() else { return };
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "web", "--no-start"]).status, 0);
    for (arguments, error) in [
        (["web.vm", "22"], "error: web is not running.\nhint: `banger vm start web` boots it.\n"),
        (["web.vm", "80"], "error: ssh reaches only port 22 of web.vm.\nhint: `ssh -L "),
        (["nope.vm", "22"], "error: there is no sandbox nope.\n"),
        (["example.org", "22"], "error: example.org is not the name of a sandbox.\n"),
    ] {
        let (ended, stream) = proxy(&host, &arguments);
        assert!(ended.status != 0 && stream.is_none(), "{arguments:?}: {ended:?}");
        assert!(ended.errors.starts_with(error), "{arguments:?}: {ended:?}");
    }
    let ended = host.banger(&["vm", "ssh", "web"]);
    assert_eq!(ended.status, 255);
    assert_eq!(ended.errors, "error: web is not running.\nhint: `banger vm start web` boots it.\n");
}

#[test]
fn a_client_that_takes_no_descriptor_gets_the_bytes() {
    let Some(host) = host_with_image() else { return };
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "web"]).status, 0);
    // Standard output is a pipe.
    let ended = host.banger(&["ssh-proxy", "WEB.Vm", "22"]);
    let greeting = "SSH-2.0-memory\r\n".to_owned();
    assert_eq!(ended, Ended { status: 0, output: greeting, errors: String::new() });
}

#[test]
fn ssh_runs_with_the_settings_and_its_status_is_kept() {
    let Some(host) = host_with_image() else { return };
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "web"]).status, 0);
    let programs = host.path("programs");
    fs::create_dir(&programs).unwrap();
    fs::write(programs.join("ssh"), "#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 42\n").unwrap();
    fs::set_permissions(programs.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = host.command(&["vm", "ssh", "web", "--", "-N", "echo", "a b"]);
    let output = command.env("PATH", format!("{}:/usr/bin:/bin", programs.display())).output().unwrap();
    assert_eq!(output.status.code(), Some(42));
    let arguments = String::from_utf8(output.stdout).unwrap();
    assert!(arguments.ends_with("\n-o\nIdentitiesOnly=yes\nweb.vm\n-N\necho\na b\n"), "{arguments}");
    assert!(arguments.contains("\nStrictHostKeyChecking=yes\n"), "{arguments}");
}

#[test]
fn a_new_sandbox_accepts_the_keys_of_its_user() {
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti mine";
    let host = Host::new();
    fs::create_dir_all(host.home().join(".ssh")).unwrap();
    fs::write(host.home().join(".ssh/id_ed25519.pub"), KEY).unwrap();
    assert_eq!(host.banger(&["vm", "create", "-q", "--image", "debian"]).status, 0);
    let keys = host.calls("CreateVM")[0].options["ssh-authorized-keys"].clone();
    assert_eq!(keys.matches("ssh-ed25519 ").count(), 2, "{keys}");
    assert!(keys.contains(KEY), "{keys}");
    assert!(host.home().join(".local/share/banger/id_ed25519").exists());
}

#[test]
fn the_configuration_is_printed_and_nothing_written() {
    let host = Host::without_service();
    let ended = host.banger(&["ssh-config"]);
    assert!(
        ended.output.starts_with("Host *.vm *.VM *.Vm *.vM\n    User root\n    ProxyCommand "),
        "{ended:?}"
    );
    assert!(!host.home().exists());
    assert_eq!(host.banger(&["ssh-config", "--install"]).status, 0);
    assert_eq!(host.banger(&["ssh-config", "--uninstall"]).status, 0);
    assert!(!host.home().join(".ssh/config").exists());
}
