#!/bin/sh -eu
# Loses the client of a session and then the service while an editor runs in it, and attaches again. tmux of this host
# provides the terminal and reads its screen.

echo 'set -g status off' > tmux.conf
t() { tmux -u -L banger "$@"; }
shows() { t capture-pane -p | grep -q -x -e "$1"; }
has_prompt() { t capture-pane -p | grep -v '^$' | tail -n 1 | grep -q -x '.*# *'; }
await() {
    wait_until "$@" && return
    t capture-pane -p >&2 || true
    t kill-server || true
    banger vm delete --force keys >&2
    exit 1
}
see() { await 180 "$1 on the screen" shows "$1"; }
type() {
    await 180 'a prompt' has_prompt
    t send-keys "$1" Enter
}
show() { t -f tmux.conf new-session -d -x 100 -y 30 "$1"; }
no_tmux() { ! quietly t list-sessions; }
ended() {
    await 180 'the end of the client' test -s ended
    cat ended
    rm ended
    await 180 'the end of tmux' no_tmux
}
killed() { [ ! -e /tmp/kill-now ]; }
is_listed() { banger vm sessions keys 2> /dev/null | grep -q '^work *running'; }

banger vm create --quiet --vcpu 1 --name keys
# shellcheck disable=SC2016 # for the shell in tmux
show 'echo $$ > client; exec banger vm shell --session work keys'
see '.*#'
type 'vi note'
see '~'
t send-keys i 'not saved yet'
see 'not saved yet'
kill -KILL "$(cat client)"
await 180 'the end of tmux' no_tmux
touch /tmp/kill-now
await 180 'the end of the service' killed
await 180 'the session in the list' is_listed && echo listed

again='banger vm attach keys work; echo ended $? > ended'
show "$again"
see 'not saved yet' && echo there
t send-keys Escape ':wq' Enter
see '.*#'
type 'clear; cat note'
see 'not saved yet' && echo edited
t send-keys C-p C-q
ended
show "$again"
see '.*#'
type 'exit 42'
ended
# How it ended is remembered.
banger vm attach -n keys work > said || echo "remembered $?"
banger vm sessions keys --json | grep -q '"exit_status": *42' && echo kept
banger vm delete --force keys
