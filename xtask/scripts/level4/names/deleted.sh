#!/bin/sh -eu
# Deletes the sandboxes, whose names must no longer resolve.

banger vm delete --force other
quietly resolvectl query other.vm && exit 1
banger vm exec one -- getent hosts other && exit 1
banger vm exec one -- getent hosts one.vm
banger vm delete --force one
! quietly resolvectl query one.vm
