#!/bin/sh -eu
# Runs a command in the first second of a guest. The user has no configuration file.

export XDG_CONFIG_HOME="$PWD/none"
banger vm run --name early -- sh -c 'echo kept > /tmp/first; systemctl is-system-running || true'
echo hello > here
banger vm cp here early:/tmp/copied
banger vm start --wait boot early > /dev/null
banger vm exec --wait boot early -- cat /tmp/first /tmp/copied
banger vm stop early > /dev/null
banger vm start early > /dev/null
banger vm exec early -- systemctl is-system-running --wait || true
banger vm show --json early > shown
grep -A 4 '"phases"' shown | tr -d ' \n'
banger vm delete --force early > /dev/null
