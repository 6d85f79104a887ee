#!/bin/sh -eu
# Sends data through a command, copies and forwarded ports. A gibibyte takes minutes under emulation, and this much
# already covers all states of the protocol.

head -c 32M /dev/urandom > much
banger vm create --quiet --vcpu 1 --name pipe
# shellcheck disable=SC2094 # Both only read.
banger vm exec pipe -- cat < much | cmp - much && echo piped
banger vm cp much pipe:/root/
banger vm cp pipe:/root/much back
cmp much back && echo copied
banger vm exec -d pipe -- python3 -m http.server --bind 127.0.0.1 8080
listens() { banger vm ports pipe | grep -q 8080; }
wait_until 180 'the server in the guest' listens
banger vm ports --json pipe | grep -q '"port": 8080' && echo listed
banger vm forward -q -L 18080:8080 pipe &
forward=$!
wait_until 180 'the forwarded port' curl -sf http://127.0.0.1:18080/much -o fetched
cmp much fetched && echo forwarded
kill $forward; wait $forward || true
python3 -m http.server --bind 127.0.0.1 19000 > /dev/null 2>&1 &
server=$!
banger vm forward -q -R 9000:19000 -R /run/back.sock:19000 pipe &
forward=$!
comes() { banger vm exec pipe -- curl -sf http://127.0.0.1:9000/much | cmp - much; }
wait_until 180 'the port of the host' comes
banger vm exec pipe -- curl -sf --unix-socket /run/back.sock http://x/much | cmp - much && echo led out
kill $forward $server; wait || true
banger vm delete --force pipe
