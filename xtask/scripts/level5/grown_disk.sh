#!/bin/sh -eu
# Grows a system disk beyond its image, which has 512 MiB.

size() { banger vm exec big -- df --output=size -BG / | tail -n 1 | tr -d ' G\n'; echo; }
banger vm create --name big --memory 512M
echo "made: $(size)"
banger vm exec big -- sh -c 'echo kept > /kept'
banger vm stop big
banger vm set --root-size 12GiB big
banger vm start big
echo "grown: $(size)"
# More than the image has room for.
banger vm exec big -- sh -c 'cat /kept; fallocate -l 9GiB /large && sync && rm /large'
