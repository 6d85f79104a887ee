#!/bin/sh -eu
# Copies the modules of E2B's SDK to a place that all users can read.
modules=$1
to=$2

rm -rf "$to"
cp -r "$modules" "$to"
chmod -R a+rX "$to"
