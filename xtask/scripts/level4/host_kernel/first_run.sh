#!/bin/sh -eu
# Boots the kernel of the host, which nobody has imported, and shows what doctor says before and after.

banger doctor | grep 'default kernel'
banger vm run --rm --name first -- uname -r
banger kernel show host | grep '^source'
banger doctor | grep 'default kernel'
