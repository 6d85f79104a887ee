#!/bin/sh -eu
# Kills the worker of the long import.
# shellcheck disable=SC2154 # long.sh comes first and sets pid, register and unit.

systemctl kill -s KILL "$unit"
status=0; wait "$register" || status=$?
cat said
echo status $status
rm long.tar.zst
systemctl is-active banger-system
find /var/lib/banger/images -mindepth 1 -maxdepth 1 -name '*staging*' | grep . || echo nothing staged
