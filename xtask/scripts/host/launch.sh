#!/bin/bash
# Starts the private host without inherited descriptors: it outlives xtask, and must not keep them open.
directory=$1
shift

for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    if [ "$fd" -gt 2 ]; then eval "exec $fd>&-"; fi
done
echo $$ > "$directory/launcher"
exec "$@"
