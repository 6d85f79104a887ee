#!/bin/sh -eu
# Looks at lists as a person does: in a narrow terminal, by template, and with the Tab key in bash.

echo 'set -g status off' > tmux.conf
t() { tmux -u -L lists "$@"; }
screen() { t capture-pane -p; }
shows() { screen | grep -q -e "$1"; }
see() {
    wait_until 180 "$1 on the screen" shows "$1" && return
    screen >&2
    t kill-server; banger vm delete --force box-of-lists >&2
    exit 1
}
# A guest that is busy may not answer in the time that a completion may take; the shell offers nothing then.
tab() {
    for _ in $(seq 20); do
        t send-keys Tab
        quietly wait_until 10 "$1" shows "$1" && return
    done
    see "$1"
}
banger vm create --quiet --vcpu 1 --name box-of-lists
banger vm exec box-of-lists -- sh -c 'mkdir -p /srv/look; touch /srv/look/only-this "/srv/look/only\$(x)"'
banger ps --format '{{.Name}} {{.State}}'
banger ps --filter name=of-li --columns name
banger vm top --columns user,command box-of-lists | grep -m 1 '^root '
banger vm stats --sort -cpu box-of-lists

t -f tmux.conf new-session -d -x 40 -y 20 'bash --norc'
see '\$'
t send-keys 'PS1="> "; source <(banger completion bash); clear; banger ps' Enter
see 'NAME .*STATE'
see '^> *$'
# The headings, the sandbox and the prompt: no line is wrapped.
[ "$(screen | grep -c .)" = 3 ] && echo narrow
t resize-window -x 120 -y 20
t send-keys 'clear; banger vm cp box-of-li'
tab 'banger vm cp box-of-lists:$' && echo 'name completed'
t send-keys '/srv/lo'
tab 'box-of-lists:/srv/look/$' && echo 'directory completed'
tab 'box-of-lists:/srv/look/only-this' && echo 'file completed'
t send-keys C-u 'clear; banger ps --filter state=runn'
tab 'state=running' && echo 'filter completed'
t kill-server
banger vm delete --force box-of-lists
