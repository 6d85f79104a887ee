#!/bin/sh -eu
# Prints the host's list of virtual machines, and what it knows of a sandbox.
id=$1

machinectl list --no-legend --no-pager | tr -s ' '
machinectl show --no-pager "banger-$id"
