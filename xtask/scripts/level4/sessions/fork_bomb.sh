#!/bin/sh -eu
# Starts more processes than a guest of this size can have: the shell either fails to fork or runs out of memory first.

banger vm create --quiet --memory 256M --name bomb
banger vm exec -T bomb -- sh -c 'n=0; while [ $n -lt 8000 ]; do sleep 1000 & n=$((n + 1)); done' > said 2>&1 || echo "ended: $?"
grep -i -o -m 1 -e 'cannot fork' -e 'resource temporarily unavailable' said || true
rm said
banger vm exec -T --timeout 180 bomb -- sh -c 'echo one | cat | cat'
banger vm stop --quiet bomb
banger vm delete --quiet bomb
