#!/bin/sh -eu
# Prints the processor time of both processes of the agent in ten seconds, in hundredths of a second. Each look includes
# the cost of the one before it, which the first two show.

banger vm create --name idle
look() {
    banger vm exec -T idle -- sh -c '
        for p in /proc/[0-9]*; do
            grep -q "^@banger-agent" $p/cmdline && cut -d " " -f 14,15 $p/stat
        done 2> /dev/null | tr " " "\n" | paste -sd +'
}
first=$(look)
before=$(look)
sleep 10
after=$(look)
banger vm delete --force idle
# Each is a sum, to be computed here.
# shellcheck disable=SC2004
echo $(( ($after) - ($before) - (($before) - ($first)) ))
