#!/bin/sh -eu
# Starts a registry with a small image, and makes it the base of the default image. What it needs of banger is removed again.
serve=$1

mkdir -p /etc/banger /srv/public
cd /srv/public
# The test host is emulated, so its guests take long to boot.
printf 'ready_timeout = 300\n[registry]\nlocal_ports = [5000]\n' > /etc/banger/config.toml
banger image register --quiet --name seed --rootfs /srv/minimal.ext4 > /dev/null
banger image export --quiet seed --oci layout > /dev/null
banger image delete seed > /dev/null
printf '%s' "$serve" > serve.py
systemd-run --quiet --unit=public-registry python3 /srv/public/serve.py /srv/public/layout
wait_until 60 'the registry' curl -s -o /dev/null http://localhost:5000/v2/
digest=$(grep -o 'sha256:[0-9a-f]*' layout/index.json | head -n 1)
mkdir -p /etc/banger/recipes
cat > /etc/banger/recipes/debian-bookworm.toml << END
base = "localhost:5000/library/tiny:1@$digest"

[[file]]
path = "/etc/built"
content = "PRETTY_NAME=from the recipe\\n"
END
systemctl try-restart banger-system
