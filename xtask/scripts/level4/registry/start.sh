#!/bin/sh -eu
# Starts a registry with one user: alice, whose password is `secret`.
registry=$1

rm -rf /tmp/oci; mkdir -p /tmp/oci/root /tmp/oci/storage; cd /tmp/oci
echo 'alice:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a' > users
cat > registry.yml <<END
version: 0.1
storage: {filesystem: {rootdirectory: /tmp/oci/storage}}
auth: {htpasswd: {realm: test, path: /tmp/oci/users}}
http: {addr: "127.0.0.1:5000"}
END
systemd-run --quiet --unit=registry "$registry" serve /tmp/oci/registry.yml
wait_until 180 'the registry' curl -s -o /dev/null http://localhost:5000/v2/
umoci init --layout layout
take() {
    mount -o loop,ro,noload "$1" root
    tar --xattrs --xattrs-include='*' -C root -cf "$2" .
    umount root
}
image() {
    name=$1; shift
    umoci new --image "layout:$name"
    for layer; do umoci raw add-layer --image "layout:$name" "$layer"; rm "$layer"; done
    umoci config --image "layout:$name" --architecture amd64 --os linux
}
push() {
    skopeo copy --quiet --dest-tls-verify=false --dest-creds alice:secret "oci:layout:$1" "docker://localhost:5000/team/$1:1"
}
