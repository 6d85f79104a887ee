#!/bin/sh -eu
# Works on the project in a guest that has no git.

cd project
banger vm run --quiet --vcpu 1 --name bare . -- sh -ec '
    mv /usr/bin/git /usr/bin/not-git
    echo work > README.md; rm deny.toml'
banger vm workspace export bare --apply
git status --short
banger vm delete --force bare
