#!/bin/sh -eu
# Runs a program as a user would, from a file.
interpreter=$1
name=$2
text=$3

printf %s "$text" > "$name"
# The interpreter may have options.
# shellcheck disable=SC2086
exec $interpreter "$name"
