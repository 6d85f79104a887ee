#!/bin/sh -eu
# Resolves names of another user's sandboxes, which must fail.
address=$1

banger vm exec theirs -- getent hosts theirs.vm > /dev/null
for name in other other.vm other.alice.vm one "$address"; do
    ! banger vm exec theirs -- getent hosts "$name" || exit 1
done
banger vm delete --force theirs
