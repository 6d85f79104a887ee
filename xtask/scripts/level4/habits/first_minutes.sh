#!/bin/sh -eu
# The first ten minutes of a user of docker, typed into a terminal. Each line works, or is answered with what to type
# instead.

echo 'set -g status off' > tmux.conf
t() { tmux -u -L habits "$@"; }
screen() { t capture-pane -p -J | grep -v '^$'; }
shows() { screen | grep -q -e "$1"; }
at_prompt() { screen | tail -n 1 | grep -q -x -e "$1"; }
fail() {
    screen >&2
    t kill-server
    banger rm --force web first >&2
    exit 1
}
lines=0
# Type a line at a prompt, and wait for what it shows.
host='host> *'
guest='.*# *'
line() {
    wait_until 240 "the prompt $1" at_prompt "$1" || fail
    # The prompt of before is there as long as the shell has not read this.
    lines=$((lines + 1))
    t send-keys "clear; echo line $lines" Enter
    wait_until 180 'an empty screen' shows "^line $lines\$" || fail
    wait_until 180 "the prompt $1" at_prompt "$1" || fail
    t send-keys "$2" Enter
    wait_until 240 "$3 after: $2" shows "$3" || fail
    echo "ok: $2"
}

mkdir -p site
echo 'hello from the host' > site/index
t -f tmux.conf new-session -d -x 120 -y 40 "env PS1='host> ' sh"
line "$host" 'banger run -it -q --vcpu 1 --name first' "$guest"
line "$guest" 'hostname; exit' '^first$'
line "$host" 'banger run -d -q --vcpu 1 -p 8080:80 --name web -- sh -c "echo started; exec sleep 1000"' '^web$'
line "$host" 'banger ls' ' web  *running '
line "$host" 'banger ps -a' ' first  *running '
line "$host" 'banger logs --exec web' '^started$'
line "$host" 'banger logs --since 10m --tail 3 web > /dev/null; echo "logs $?"' '^logs 0$'
line "$host" 'banger cp -r site web:/srv/; banger exec web cat /srv/site/index' '^hello from the host$'
line "$host" 'banger exec -it web bash; echo "status $?"' "$guest"
line "$guest" 'exit 3' '^status 3$'
line "$host" 'banger inspect web | head -n 1' '^name  *web$'
line "$host" 'banger stop -t 60 web' '^web: stopped$'
line "$host" 'banger start -q web' '^web: started$'
line "$host" 'banger rm web' '`banger vm delete --force web`'
line "$host" 'banger rm -f web first' '^first: deleted$'
# What is spelled otherwise.
line "$host" 'banger run make test' '^hint: `banger run -- make test`\.$'
line "$host" 'banger run -it debian:12 bash' '^hint: `banger run -it --image debian:12 -- bash`\.$'
line "$host" 'banger run -v data:/srv' '^hint: for the directory of this name, write '
line "$host" 'banger run --network host' '^hint: sandboxes of one owner reach each other'
line "$host" 'banger build .' '^hint: `banger image build DIRECTORY`'
line "$host" 'banger images' ' quick '
line "$host" 'banger rmi nope' '^error: there is no image nope\.$'
t kill-server
