#!/bin/sh -eu
# Prints what the caller may do, an action and a word in each pair.

busctl call dev.banger.Manager1 /dev/banger/Manager1 dev.banger.Manager1 GetPermissions
