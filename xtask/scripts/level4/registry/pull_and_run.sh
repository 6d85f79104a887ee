#!/bin/sh -eu
# Pulls an image under two names and runs commands in it.

mkdir -p ~/.docker
echo '{"auths":{"localhost:5000":{"auth":"YWxpY2U6c2VjcmV0"}}}' > ~/.docker/config.json
banger image pull localhost:5000/team/alpine-like:1
banger vm run --rm --quiet --image localhost:5000/team/alpine-like:1 -- cat /etc/os-release
banger vm run --rm --quiet --image alpine-like-1 -- sh -c 'echo "$GREETING from $PWD"'
banger image pull --name alpine-like-again localhost:5000/team/alpine-like:1
banger image delete alpine-like-1
banger vm run --rm --quiet --image alpine-like-again -- sh -c 'echo still here'
banger image delete alpine-like-again
rm -r ~/.docker
