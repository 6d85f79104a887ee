#!/bin/sh -eu
# Prints the limits of commands.

banger vm create --quiet --memory 512M --name limits
run() { banger vm exec -T "$@"; }
run limits -- sh -c 'ulimit -Sn; ulimit -Hn'
run limits -- cat /proc/sys/fs/inotify/max_user_instances
run limits -- sh -c 'stat -c "%n %U %a" $XDG_RUNTIME_DIR'
run --user nobody limits -- sh -c 'stat -c "%n %U %a" $XDG_RUNTIME_DIR; touch $XDG_RUNTIME_DIR/x && echo written'
watches=$(run limits -- cat /proc/sys/fs/inotify/max_user_watches)
[ "$watches" -gt 60000 ] && echo watches
banger vm delete --force limits
