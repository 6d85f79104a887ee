#!/bin/bash -eu
# Creates sandboxes with published ports, and is told when a guest listens where they do not arrive.

banger vm create --vcpu 1 --name pub -p 8031:22 -p 22 2> notes
grep -q '^127.0.0.1:[0-9]* reaches port 22/tcp of pub\.$' notes && echo chosen
serve pub
answers() { [ "$(head -c 4 < "/dev/tcp/127.0.0.1/$1")" = SSH- ]; } 2> /dev/null
wait_until 180 'sshd at the published port' answers 8031
banger ps | grep -o '127.0.0.1:8031->22/tcp'
banger vm publish pub | grep -o '127.0.0.1:8031\b'
status=0; banger vm create --quiet --name late -p 8031:22 2> taken || status=$?
echo "taken: $status $(grep -c 'port 8031/tcp' taken)"
status=0; banger vm create --quiet --name late -p 80:80 2> refused < /dev/null || status=$?
echo "privileged: $status"
banger ps -q | grep late || echo nothing created
banger vm exec -d pub -- python3 -m http.server --bind 127.0.0.1 8080 > /dev/null
listens() { banger vm ports pub | grep -q 8080/tcp; }
wait_until 180 'a server in the guest' listens
banger vm publish pub 8032:8080 2>&1 > /dev/null | grep -o 'listens on port 8080/tcp of its loopback only'
banger vm forward -d --auto pub 2> /dev/null
fetch() { curl -sf -o /dev/null http://127.0.0.1:8080/; }
wait_until 180 'the forwarded port' fetch
banger vm forward --list | grep -c '^[0-9]* *local *pub '
banger vm forward --stop pub
fetch || echo forwarding ended
banger vm delete --quiet --force pub
# shellcheck disable=SC2016
banger vm run --rm --quiet --vcpu 1 -p 8033:8080 -- sh -c 'python3 -m http.server --bind 127.0.0.1 8080 > /dev/null 2>&1 & sleep 8' \
    2> quiet
[ ! -s quiet ] && echo a quiet run is quiet
banger vm run --rm --vcpu 1 -p 8033:8080 --name told -- sh -c \
    'python3 -m http.server --bind 127.0.0.1 8080 > /dev/null 2>&1 & for n in $(seq 1500); do [ -e /run/enough ] && break; sleep 0.2; done' 2> notes &
run=$!
wait_until 180 'the note' grep -q 'of its loopback only' notes
banger vm exec told -- touch /run/enough
wait $run
echo "notes of a run: $(grep -c 'of its loopback only' notes)"
