#!/bin/sh -eu
# Prints everything about the files of the service that doctor could change.

cd /var/lib/banger
find . -printf '%p %y %m %U %s %T@\n' | LC_ALL=C sort
find . -type f -size -1M -exec sha256sum {} + | LC_ALL=C sort
