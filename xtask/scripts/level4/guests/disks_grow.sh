#!/bin/sh -eu
# Grows both disks of a sandbox. Its id is the last line.

sizes() { banger vm exec big -- df --output=size -BG / /root | tail -n 2 | tr -d ' G\n'; echo; }
show() { banger vm show --json big | sed -n "s/^ *\"$1\": *\"\{0,1\}\([^\",]*\).*/\1/p"; }
digest() { banger vm exec big -- sh -c 'cat /kept/* /root/kept | md5sum'; }
banger vm create --quiet --name big --root-size 12GiB
echo "made: $(sizes)"
banger vm exec big -- sh -c 'mkdir /kept; for n in $(seq 1000); do echo $n > /kept/$n; done; seq 1000 > /root/kept'
echo "home: $(banger vm exec big -- sh -c 'ls -A /root | grep -c lost+found || true')"
digest > sum
banger vm set --root-size 20GiB big 2> refused || echo "running: $(grep -c 'stop it first' refused)"
banger vm stop --quiet big
banger vm set --root-size 11GiB big 2> refused || echo "smaller: $(grep -c '12 GiB' refused) $(grep -c hint: refused)"
banger vm set --root-size 20GiB --disk-size 10GiB big
banger vm start --quiet big
echo "grown: $(sizes)"
echo "shown: $(show root_size) $(show disk_size)"
digest | cmp - sum && echo "kept: the same"
# More than there was room for before.
banger vm exec big -- fallocate -l 14GiB /large
banger vm health big > /dev/null && echo healthy
banger vm stop --quiet big
show id
