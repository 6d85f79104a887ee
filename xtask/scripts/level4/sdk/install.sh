#!/bin/sh -eu
# Unpacks a package of an SDK for all users.
file=$1
to=$2

mkdir -p "$to"
case $file in
*.whl) python3 -m zipfile -e "$file" "$to" ;;
*) tar -xzf "$file" -C "$to" --strip-components=1 --no-same-owner ;;
esac
chmod -R a+rX "$to"
