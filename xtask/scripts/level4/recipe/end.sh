#!/bin/sh -u
# Removes everything that the checks have created.

systemctl stop tiny-registry.service || true
rm -rf /tmp/recipe /etc/banger/recipes
banger image cache prune --quiet > /dev/null
for name in first app tool; do
    banger image delete "alice/$name" > /dev/null 2>&1 || true
done
