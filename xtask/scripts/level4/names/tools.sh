#!/bin/sh -eu
# Functions that wait until a name resolves, or no longer does.

known() { resolvectl query --legend=no "$1" > /dev/null 2>&1; }
unknown() { ! known "$1"; }
until_known() { wait_until 180 "the name $1" known "$1"; }
until_gone() { wait_until 180 "the end of the name $1" unknown "$1"; }
