#!/bin/sh -eu
# Prints by how many milliseconds the clock of a guest is ahead of the time before, and behind the time after.

banger vm create --name exact
before=$(date +%s%N)
there=$(banger vm exec -T exact -- date +%s%N)
after=$(date +%s%N)
banger vm delete --force exact
echo $(( (there - before) / 1000000 )) $(( (after - there) / 1000000 ))
