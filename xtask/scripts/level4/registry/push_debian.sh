#!/bin/sh -eu
# Pushes the golden image, and the one without an init with a second layer that removes its busybox, which leaves what
# Debian calls minbase.
image=$2
without_init=$3

take "$image" layer.tar
image debian layer.tar
push debian
take "$without_init" layer.tar
mkdir -p without/usr/bin; : > without/usr/bin/.wh.busybox
tar -C without -cf without.tar usr/bin/.wh.busybox
image minbase layer.tar without.tar
push minbase
