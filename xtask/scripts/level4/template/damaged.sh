#!/bin/sh -eu
# Starts a sandbox whose template is damaged.

banger vm create --quiet --name box
banger vm show --json box | grep -o '"booted_from": *"[a-z]*"'
banger doctor | grep 'templates: ' || true
banger vm delete --quiet --force box
