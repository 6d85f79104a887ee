#!/bin/sh -eu
# Prints a digest of a directory: names, contents, links and executable bits.

(find . -name .git -prune -o -type f -exec sha256sum {} +
 find . -name .git -prune -o -type l -printf '%p -> %l\n'
 find . -name .git -prune -o -type f -perm -100 -print) | LC_ALL=C sort | sha256sum
