#!/bin/sh -eu
# Drives a shell through tmux, which provides the terminal and reads its screen.

echo 'set -g status off' > tmux.conf
t() { tmux -u -L banger "$@"; }
shows() { t capture-pane -p | grep -q -x -e "$1"; }
has_prompt() { t capture-pane -p | grep -v '^$' | tail -n 1 | grep -q -x '.*# *'; }
# Wait for a condition, and show the screen if it does not become true.
await() {
    wait_until "$@" && return
    t capture-pane -p >&2
    t kill-server; banger vm delete --force keys >&2
    exit 1
}
see() { await 180 "$1 on the screen" shows "$1"; }
# Type once the prompt is there.
type() {
    await 180 'a prompt' has_prompt
    t send-keys "$1" Enter
}
# A key that is pressed while a program sets up the terminal may get lost: retry.
press() {
    for _ in $(seq 60); do
        t send-keys "$1"
        sleep 1
        shows "$2" && return
    done
    see "$2"
}
run='banger vm run --quiet --vcpu 1 --name keys; echo ended $? > ended'
t -f tmux.conf new-session -d -x 100 -y 30 "$run"
see '.*#'
type 'stty size'
see '30 100'
t resize-window -x 120 -y 40
type 'until stty size | grep -x "40 120"; do sleep 0.2; done'
see '40 120' && echo resized
# The programs themselves print what shows that they have the terminal: a key that comes while the shell
# still hands it over is the shell's, and the program goes on beside it or stays stopped. Each prints another
# word, as the screen still shows the last one for a moment.
type 'clear; sh -c "echo begun; exec sleep 1000"'
see 'begun'
press C-c '.*#'
type 'echo interrupted $?'
see 'interrupted 130' && echo interrupted
type "clear; sh -c 'trap \"echo resumed\" CONT; echo waiting; while sleep 0.2; do :; done'"
see 'waiting'
press C-z '.*Stopped.*' && echo stopped
type 'clear; fg'
see 'resumed'
press C-c '.*#'
type 'echo continued $?'
see 'continued 130' && echo continued
type 'vi note'
see '~'
t send-keys i 'from the editor' Escape ':wq' Enter
# The editor discards what is typed while it exits.
see '.*#'
type 'clear; cat note'
see 'from the editor' && echo edited
type 'exit 42'
await 180 'the end of the command' test -s ended
cat ended
t kill-server 2> /dev/null || true
banger vm delete --force keys
