#!/bin/sh -eu
# Deletes the sandboxes, whose names must no longer resolve.

banger vm delete --force other
# resolved keeps an answer for a few seconds.
until_gone other.vm
banger vm exec one -- getent hosts other && exit 1
banger vm exec one -- getent hosts one.vm
banger vm delete --force one
! quietly resolvectl query one.vm
