#!/bin/sh -eu
# Runs a command in a sandbox twice on a host that has only the packages: without a kernel, an image or settings of users.
# The registry and the recipe stand for the public ones, which this host does not reach.

[ "$(banger kernel list --json)" = '[]' ] && [ "$(banger image list --json)" = '[]' ] && echo 'nothing is there'
for run in first second; do
    echo "$run run:"
    banger vm run --rm -- grep ^PRETTY_NAME= /etc/os-release /etc/built 2> "$run"
    for said in 'importing the kernel' 'building the default image'; do
        if grep -q "$said" "$run"; then echo "$said"; fi
    done
done
if ! [ -s first ]; then echo 'the first run was silent'; fi
cat first second >&2
