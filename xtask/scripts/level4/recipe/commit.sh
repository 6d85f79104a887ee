#!/bin/sh -eu
# Makes an image of a sandbox that has changed its disks.

banger vm create --quiet --name source > /dev/null
banger vm exec source -- sh -c 'echo kept > /etc/changed; echo lost > /root/work; sync'
banger vm commit --quiet source tool 2> /dev/null || echo refused while it runs
banger vm stop --quiet source > /dev/null
banger vm commit --quiet source tool
banger vm delete source > /dev/null
banger vm run --rm --quiet --image tool -- sh -c 'cat /etc/changed > /dev/null && echo kept on the system disk
[ -e /root/work ] || echo not the work disk'
banger image show tool --json | grep -o '"org.opencontainers.image.base.name": *"[^"]*' | cut -d '"' -f 4
banger image delete tool > /dev/null
