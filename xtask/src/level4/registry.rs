//! An image of a registry: pulled by those whom the registry knows, and booted.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Check, as_user, expect, text};
use crate::{
    host::{self, Host},
    image,
    run::run as shell,
};

pub(super) const CHECKS: &[(&str, Check)] =
    &[("an image of a registry that asks for a password is pulled, run and shared", pulled)];

/// What the checks need beside what banger does. Debian's registry listens to everybody once its package is
/// installed, so that nobody installs it but who wants to.
const NEEDED: &[&str] = &["docker-registry", "skopeo", "umoci"];

/// Why the checks cannot run on this machine, if they cannot.
pub(super) fn missing() -> Option<String> {
    let is_there = |name: &&&str| Path::new("/usr/bin").join(name).exists();
    let missing: Vec<&str> = NEEDED.iter().filter(|name| !is_there(name)).copied().collect();
    (!missing.is_empty()).then(|| format!("these packages are missing: {}", missing.join(", ")))
}

/// The image without an init of xtask, as an image of a registry.
const PUSH: &str = r#"
    rm -rf /tmp/oci; mkdir -p /tmp/oci/root /tmp/oci/storage; cd /tmp/oci
    mount -o loop,ro,noload "$1" root
    tar --xattrs --xattrs-include='*' -C root -cf layer.tar .
    umount root
    umoci init --layout layout
    umoci new --image layout:1
    umoci raw add-layer --image layout:1 layer.tar
    umoci config --image layout:1 --architecture amd64 --os linux --config.workingdir /srv --config.env GREETING=hello
    # alice:secret
    echo 'alice:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a' > users
    cat > registry.yml <<END
version: 0.1
storage: {filesystem: {rootdirectory: /tmp/oci/storage}}
auth: {htpasswd: {realm: test, path: /tmp/oci/users}}
http: {addr: "127.0.0.1:5000"}
END
    systemd-run --quiet --unit=registry /usr/bin/docker-registry serve /tmp/oci/registry.yml
    for n in $(seq 100); do curl -s -o /dev/null http://localhost:5000/v2/ && break; sleep 0.1; done
    skopeo copy --quiet --dest-tls-verify=false --dest-creds alice:secret \
        oci:layout:1 docker://localhost:5000/team/alpine-like:1
"#;

fn pulled(host: &Host) -> Result<()> {
    let minimal = host::inside(&image::ensure("minimal")?)?;
    let mut push = host.enter(&["sh", "-euc", PUSH, "push"]);
    shell(push.arg(minimal)).context("cannot fill the registry")?;
    let checked = pull_and_run(host);
    let end = "
        systemctl stop registry.service || true
        umount /tmp/oci/root 2> /dev/null || true
        rm -rf /tmp/oci
        banger image cache prune --quiet
        for name in $(banger image list --json | grep -o '\"name\": *\"alpine-like[^\"]*' | cut -d '\"' -f 4); do
            banger image delete $name
        done";
    shell(&mut host.enter(&["sh", "-uc", end]))?;
    checked
}

fn pull_and_run(host: &Host) -> Result<()> {
    const REFERENCE: &str = "localhost:5000/team/alpine-like:1";
    let refused = as_user(host, "bob", &["banger", "image", "pull", REFERENCE])?;
    ensure!(!refused.status.success(), "bob, whom the registry does not know, has the image");
    let message = text(&refused.stderr);
    ensure!(message.contains("hint: log in with"), "bob is not told what to do: {message:?}");

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
    let (out, told) = (expect(&output, 0)?, text(&output.stderr));
    for expected in ["alpine-like-1\n", "ID=debian", "hello from /srv", "alpine-like-again\n", "still here"] {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    ensure!(told.contains("resolve: asking localhost:5000") && told.contains("pull: fetching"), "{told:?}");
    Ok(())
}
