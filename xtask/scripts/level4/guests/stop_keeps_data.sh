#!/bin/sh -eu
# Stops a sandbox right after many small writes.

banger vm create --name keep
banger vm exec keep -- sh -c 'mkdir many; for n in $(seq 1000); do echo $n > many/$n; done'
banger vm stop keep
banger vm start keep
banger vm exec keep -- sh -c 'cat many/* | sort -n | md5sum'
seq 1000 | md5sum
banger vm delete --force keep
