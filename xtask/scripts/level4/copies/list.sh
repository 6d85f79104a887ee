#!/bin/sh -eu
# Lists such a tree: names, kinds, permissions, times, targets, lengths, link counts, contents, and whether the sparse
# file is still sparse.

find . ! -type s ! -type p -printf '%P %y %#m %Ts %l' \( -type f -printf ' %s %n' -o -true \) -printf '\n' | sort
find . -type f ! -name holes -exec sha256sum {} + | sort
tail -c +209715201 holes | head -c 4; echo
[ "$(stat -c %b holes)" -lt 1000 ] && echo sparse
