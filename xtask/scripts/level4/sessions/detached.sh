#!/bin/sh -eu
# Runs detached commands. The first one writes more than twice the limit of kept output.

banger vm create --quiet --name apart
first=$(banger vm exec -d apart -- sh -c 'head -c 40000000 /dev/zero | tr \\0 x; echo; echo last; exit 3')
banger vm logs --exec="$first" -f apart 2> note | tail -n 1
[ "$(banger vm logs --exec="$first" apart 2> note | wc -c)" -le 16777216 ] && echo bounded
cat note
second=$(banger vm exec -d apart -- sleep 1000)
banger vm commands apart | tail -n 1
banger vm commands --stop "$second" apart
banger vm restart --quiet apart
banger vm commands apart
banger vm logs --exec="$first" -n 1 apart
banger vm delete --force apart
