#!/bin/sh -eu
# Exports an image, and registers and exports the result.

set -e; cd; rm -rf exported; mkdir exported; cd exported
banger image export out --oci out.tar
banger image export out --oci layout
banger image register --name back --oci layout
banger image export back --oci back.tar
cmp out.tar back.tar && echo same
banger image delete back
cd; rm -rf exported
