#!/bin/sh -eu
# Starts a registry with one small image, and puts a recipe of it where the administrator's recipes are.
tar=$1
serve=$2

rm -rf /tmp/recipe; mkdir /tmp/recipe; cd /tmp/recipe
banger image register --quiet --name seed --rootfs "$tar" > /dev/null
banger image export --quiet seed --oci layout > /dev/null
banger image delete seed > /dev/null
printf '%s' "$serve" > serve.py
systemd-run --quiet --unit=tiny-registry python3 /tmp/recipe/serve.py /tmp/recipe/layout
wait_until 180 'the registry' curl -s -o /dev/null http://localhost:5000/v2/
digest=$(grep -o 'sha256:[0-9a-f]*' layout/index.json | head -n 1)
mkdir -p /etc/banger/recipes
cat > /etc/banger/recipes/first.toml << END
base = "localhost:5000/library/tiny:1@$digest"
commands = [
    "echo 0123456789abcdef0123456789abcdef > /etc/machine-id",
    "echo secret > /root/.ash_history; echo kept > /root/kept",
]

[[file]]
path = "/etc/built"
content = "hello from the recipe\\n"
END
