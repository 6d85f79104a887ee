#!/bin/sh -eu
# Runs the self-test as root, in no unit.

/usr/libexec/banger/confinement --in outside 2>&1
