#!/bin/sh -eu
# Runs commands in a sandbox under Firecracker.

banger vm create --name fire --memory 512M
banger vm exec fire -- cat /proc/cmdline
banger vm exec fire -- cat /proc/net/fib_trie
banger vm exec fire -- sh -c 'cat /sys/class/misc/hw_random/rng_current; ls /sys/bus/virtio/drivers/virtio_balloon'
banger vm stop fire && banger vm start fire
banger vm exec fire -- true && echo again
