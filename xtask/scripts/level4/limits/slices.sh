#!/bin/sh -eu
# Prints the limits of a sandbox's unit and of the slices around it.
unit=$1

systemctl show --value --property Slice "$unit"
for slice in banger.slice banger-u$(id -u alice).slice; do
    systemctl show --value --property MemoryMax --property TasksMax --property CPUWeight --property IOWeight "$slice"
done
systemctl show --value --property MemoryMax --property TasksMax --property OOMScoreAdjust "$unit"
