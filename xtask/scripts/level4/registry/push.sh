#!/bin/sh -eu
# Pushes xtask's image without an init.
image=$2

take "$image" layer.tar
image alpine-like layer.tar
umoci config --image layout:alpine-like --config.workingdir /srv --config.env GREETING=hello
push alpine-like
