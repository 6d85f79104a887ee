#!/bin/sh -eu
# Starts a guest and waits for different parts of its boot.

running() { banger vm exec --wait agent slow -- systemctl is-system-running 2>&1 || true; }
banger vm create --wait boot --name slow > /dev/null
running
banger vm stop slow > /dev/null
banger vm start --wait init slow > /dev/null
running
banger vm exec --wait boot slow -- true
running
banger vm show slow | grep '^phases'
banger vm delete --force slow > /dev/null
