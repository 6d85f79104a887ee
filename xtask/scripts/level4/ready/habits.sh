#!/bin/sh -eu
# Checks the locale of commands, and where they read from.

export XDG_CONFIG_HOME="$PWD/none"
banger vm create --name words
unset LANG LC_ALL
banger vm exec words -- sh -c 'echo $LANG; touch "$HOME/ä"; ls -b'
LANG=xx_YY.UTF-8 LC_TIME=C banger vm exec words -- sh -c 'echo $LANG $LC_TIME'
banger vm exec -e LANG=C words -- sh -c 'echo $LANG'
printf 'a\nb\n' | while read -r line; do banger vm exec -n words -- echo "got $line"; done
echo hello | banger vm exec -i words -- cat
script -qefc 'banger vm exec -it words sh -c "test -t 0 && test -t 1 && echo && echo terminal"' screen < /dev/null | tr -d '\r'
banger vm delete --force words
