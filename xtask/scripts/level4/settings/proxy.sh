#!/bin/sh -eu
# Reaches a page through a proxy on the host's loopback that asks for a password.

cd; rm -rf proxied; mkdir proxied; cd proxied
cat > proxy.py <<'P'
import base64, http.server

class Proxy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = "Basic " + base64.b64encode(b"ann:hush-hush").decode()
        allowed = self.headers.get("Proxy-Authorization") == known
        self.send_response(200 if allowed else 407)
        self.end_headers()
        self.wfile.write(f"through the proxy to {self.path}\n".encode())

    def log_message(self, *words):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
print(server.server_address[1], flush=True)
server.serve_forever()
P
python3 proxy.py > port & proxy=$!
trap 'kill "$proxy"' EXIT
wait_until 180 'the port of the proxy' test -s port
http_proxy="http://ann:hush-hush@127.0.0.1:$(cat port)"
export http_proxy
fetch='import sys, urllib.request; sys.stdout.write(urllib.request.urlopen("http://example.org/page", timeout=60).read().decode())'

banger vm create --quiet --vcpu 1 --name box
banger vm exec --proxy box -- python3 -c "$fetch"
banger vm exec box -- python3 -c "$fetch" 2> /dev/null || echo 'not without asking'
# Two at once share no port. Each waits until the other has its own.
both='echo "$http_proxy" > "/run/$1.new"; mv "/run/$1.new" "/run/$1"; for n in $(seq 1500); do [ -e "/run/$2" ] && break; sleep 0.2; done; python3 -c "$0"'
banger vm exec --proxy box -- sh -c "$both" "$fetch" one two & first=$!
banger vm exec --proxy box -- sh -c "$both" "$fetch" two one
wait "$first"
banger vm exec box -- sh -c 'cmp -s /run/one /run/two || echo two ports'
banger vm exec --proxy box -- sh -c 'echo "$no_proxy"'
banger vm exec --proxy -d box -- true 2>&1 | grep -q 'which may end first' && echo 'refused for a detached command'
grep -rq hush-hush ~/.local ~/.config 2> /dev/null || echo 'the password is kept nowhere'

export XDG_CONFIG_HOME="$PWD/settings"
mkdir -p settings/banger
printf '[defaults]\nproxy = true\n' > settings/banger/config.toml
banger vm exec box -- python3 -c "$fetch"
banger vm delete --quiet --force box
cd; rm -rf proxied
