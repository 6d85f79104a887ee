//! Checks of registries: images are pulled with the user's credentials, and boot.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Check, as_user, expect, text};
use crate::{
    host::{self, Host},
    image,
    run::run as shell,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("an image from a registry with a password is pulled, run and shared", pulled),
    ("Debian from a registry runs, with systemd and without an init", debian),
];

/// Packages that only these checks need. They are not installed automatically: Debian's docker-registry listens on all
/// addresses as soon as it is installed.
const NEEDED: &[&str] = &["docker-registry", "skopeo", "umoci"];

/// Returns the reason why the checks cannot run on this host, if there is one.
pub(super) fn missing() -> Option<String> {
    let is_there = |name: &&&str| Path::new("/usr/bin").join(name).exists();
    let missing: Vec<&str> = NEEDED.iter().filter(|name| !is_there(name)).copied().collect();
    (!missing.is_empty()).then(|| format!("these packages are missing: {}", missing.join(", ")))
}

/// Starts a registry with one user: alice, whose password is `secret`.
const START: &str = r#"
    rm -rf /tmp/oci; mkdir -p /tmp/oci/root /tmp/oci/storage; cd /tmp/oci
    echo 'alice:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a' > users
    cat > registry.yml <<END
version: 0.1
storage: {filesystem: {rootdirectory: /tmp/oci/storage}}
auth: {htpasswd: {realm: test, path: /tmp/oci/users}}
http: {addr: "127.0.0.1:5000"}
END
    systemd-run --quiet --unit=registry /usr/bin/docker-registry serve /tmp/oci/registry.yml
    for n in $(seq 100); do curl -s -o /dev/null http://localhost:5000/v2/ && break; sleep 0.1; done
    umoci init --layout layout
    take() {
        mount -o loop,ro,noload "$1" root
        tar --xattrs --xattrs-include='*' -C root -cf "$2" .
        umount root
    }
    image() {
        name=$1; shift
        umoci new --image layout:$name
        for layer; do umoci raw add-layer --image layout:$name $layer; rm $layer; done
        umoci config --image layout:$name --architecture amd64 --os linux
    }
    push() {
        skopeo copy --quiet --dest-tls-verify=false --dest-creds alice:secret oci:layout:$1 docker://localhost:5000/team/$1:1
    }
"#;

/// Pushes xtask's image without an init.
const PUSH: &str = r#"
    take "$1" layer.tar
    image alpine-like layer.tar
    umoci config --image layout:alpine-like --config.workingdir /srv --config.env GREETING=hello
    push alpine-like
"#;

/// Pushes the golden image, and the one without an init with a second layer that removes its busybox, which leaves
/// what Debian calls minbase.
const PUSH_DEBIAN: &str = r#"
    take "$1" layer.tar
    image debian layer.tar
    push debian
    take "$2" layer.tar
    mkdir -p without/usr/bin; : > without/usr/bin/.wh.busybox
    tar -C without -cf without.tar usr/bin/.wh.busybox
    image minbase layer.tar without.tar
    push minbase
"#;

/// Removes everything that the checks have created.
const END: &str = r#"
    systemctl stop registry.service || true
    umount /tmp/oci/root 2> /dev/null || true
    rm -rf /tmp/oci ~alice/.docker
    banger image cache prune --quiet
    for name in $(banger image list --json | grep -o '"name": *"[^"]*' | cut -d '"' -f 4); do
        case $name in alpine-like*|debian-1|minbase-1) banger image delete $name ;; esac
    done"#;

fn pulled(host: &Host) -> Result<()> {
    with_registry(host, PUSH, &["minimal"], pull_and_run)
}

fn debian(host: &Host) -> Result<()> {
    with_registry(host, PUSH_DEBIAN, &["debian-bookworm", "minimal"], pull_and_run_debian)
}

/// Starts a registry, runs `push` with these images as arguments, and then the check.
fn with_registry(host: &Host, push: &str, images: &[&str], check: Check) -> Result<()> {
    let mut fill = host.enter(&["sh", "-euc", &format!("{START}{push}"), "push"]);
    for name in images {
        fill.arg(host::inside(&image::ensure(name)?)?);
    }
    let checked = shell(&mut fill).context("cannot fill the registry").and_then(|()| check(host));
    shell(&mut host.enter(&["sh", "-uc", END]))?;
    checked
}

fn pull_and_run_debian(host: &Host) -> Result<()> {
    let session = r#"
        mkdir -p ~/.docker
        echo '{"auths":{"localhost:5000":{"auth":"YWxpY2U6c2VjcmV0"}}}' > ~/.docker/config.json
        for name in minbase debian; do banger image pull --quiet localhost:5000/team/$name:1; done
        banger vm run --rm --quiet --image localhost:5000/team/minbase:1 -- cat /etc/os-release /proc/1/comm
        # The agent answers before systemd has set its process name.
        named='for n in $(seq 300); do grep systemd /proc/1/comm && exit; sleep 0.2; done'
        banger vm run --rm --quiet --image localhost:5000/team/debian:1 -- sh -c "cat /etc/os-release; $named"
        "#;
    let out = expect(&as_user(host, "alice", &["sh", "-euc", session])?, 0)?;
    let seen: Vec<&str> = out.lines().filter(|line| !line.contains('=') || *line == "ID=debian").collect();
    ensure!(seen == ["minbase-1", "debian-1", "ID=debian", "init", "ID=debian", "systemd"], "{seen:?}");
    Ok(())
}

fn pull_and_run(host: &Host) -> Result<()> {
    const REFERENCE: &str = "localhost:5000/team/alpine-like:1";
    let refused = as_user(host, "bob", &["banger", "image", "pull", REFERENCE])?;
    ensure!(!refused.status.success(), "bob, who has no account at the registry, got the image");
    let message = text(&refused.stderr);
    ensure!(message.contains("hint: log in with"), "bob gets no hint: {message:?}");

    let session = r#"
        mkdir -p ~/.docker
        echo '{"auths":{"localhost:5000":{"auth":"YWxpY2U6c2VjcmV0"}}}' > ~/.docker/config.json
        banger image pull localhost:5000/team/alpine-like:1
        banger vm run --rm --quiet --image localhost:5000/team/alpine-like:1 -- cat /etc/os-release
        banger vm run --rm --quiet --image alpine-like-1 -- sh -c 'echo "$GREETING from $PWD"'
        banger image pull --name alpine-like-again localhost:5000/team/alpine-like:1
        banger image delete alpine-like-1
        banger vm run --rm --quiet --image alpine-like-again -- sh -c 'echo still here'
        banger image delete alpine-like-again
        rm -r ~/.docker"#;
    let output = as_user(host, "alice", &["sh", "-euc", session])?;
    let (out, err) = (expect(&output, 0)?, text(&output.stderr));
    for expected in ["alpine-like-1\n", "ID=debian", "hello from /srv", "alpine-like-again\n", "still here"] {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    ensure!(err.contains("resolve: asking localhost:5000") && err.contains("pull: fetching"), "{err:?}");
    Ok(())
}
