#!/bin/sh -eu
# Exports an image in each form, and registers and exports the results.

set -e; cd; rm -rf exported; mkdir exported; cd exported
digest=$(banger image export out out.tar)
banger image export out - > piped.tar
cmp out.tar piped.tar
for form in layout out.tar.gz out.tar.zst; do
    test "$(banger image export out "$form")" = "$digest"
    banger image register --name back "$form"
    test "$(banger image export back --oci back.tar)" = "$digest"
    rm back.tar
    banger image delete back
done
gzip -dc out.tar.gz | cmp out.tar -
tar -xOf out.tar manifest.json | grep -q '"RepoTags":\["out:latest"\]'
# As a program that knows only Docker archives reads it.
mkdir docker && tar -xf out.tar -C docker && rm docker/index.json docker/oci-layout
tar -cf docker.tar -C docker .
banger image register --name back docker.tar
test "$(banger image export back back.tar)" = "$digest" && echo same
banger image delete back
cd; rm -rf exported
