#!/bin/sh -eu
# Uses terminals that no guest knows: one that the host describes, and one that nobody describes.

describe() { infocmp -x xterm-256color | sed "s/^xterm-256color|/$1|/" | tic -x -o "$HOME/.terminfo" -; }

banger ssh-config --install
banger vm create --quiet --vcpu 1 --name web
serve web
describe xterm-newest
describe xterm-newer
describe_there="echo \"\$TERM\"; infocmp > /dev/null && echo is described"
say() { tr -d '\r' | tr '\n' ' '; }
echo "described: $(TERM=xterm-newest banger vm exec -t -n web -- sh -c "$describe_there" | say)"
echo "unheard: $(TERM=xterm-unheard banger vm exec -t -n web -- sh -c "$describe_there" | say)"
echo "known: $(TERM=xterm banger vm exec -t -n web -- sh -c "$describe_there" | say)"
echo "ssh: $(TERM=xterm-newer ssh -tt web.vm "$describe_there" 2> /dev/null < /dev/null | say)"
banger vm delete --quiet --force web
banger ssh-config --uninstall
