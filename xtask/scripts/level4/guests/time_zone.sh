#!/bin/sh -eu
# Prints times of guests. Only Kathmandu is 5 hours and 45 minutes ahead.

TZ=Asia/Kathmandu banger vm run --rm -- date +%z
banger vm create --timezone Pacific/Chatham --name far
banger vm exec far -- date -d @1750000000 +%H:%M
banger vm delete --force far
banger vm create --timezone ../etc/passwd --name odd && exit 1
banger vm show odd 2> nothing && exit 1
true
