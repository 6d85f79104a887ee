#!/bin/bash -eu
# Takes a published port back, and deletes the sandbox.

banger vm unpublish web 8022
echo "taken back: $(knocks 127.0.0.1 8022)"
banger vm delete --force web
echo "deleted: $(knocks 203.0.113.1 8023)"
