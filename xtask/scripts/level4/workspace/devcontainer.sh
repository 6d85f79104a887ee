#!/bin/sh -eu
# Runs a sandbox as a devcontainer.json describes it.

rm -rf shop; mkdir -p shop/.devcontainer; cd shop
cat > .devcontainer/devcontainer.json <<'END'
{
    // Of somebody who works with containers.
    "image": "debian-bookworm",
    "remoteUser": "daemon",
    "containerEnv": { "STAGE": "${localWorkspaceFolderBasename}" },
    "postCreateCommand": "id -un > who && echo $STAGE > stage",
    "forwardPorts": [8123],
    "initializeCommand": "touch ran",
}
END
git init -q -b main; git add -A
git -c user.name=Ann -c user.email=a@example.org commit -qm all
serve='import http.server as h; h.ThreadingHTTPServer(("127.0.0.1", 8123), h.SimpleHTTPRequestHandler).serve_forever()'
banger vm run --vcpu 1 --name place . -- sh -c "id -un; pwd; cat who stage; git status --short; python3 -c '$serve' 2> /dev/null" > ../said 2> ../told &
run=$!
wait_until 240 'the server in the guest' curl -sf -o ../fetched http://127.0.0.1:8123/stage
sed 's/^/fetched /' ../fetched
banger vm exec place -- sh -c 'echo later $STAGE; id -un; echo more > mine'
banger vm workspace export place --json | grep -o '"path": "[a-z]*"'
kill $run; wait $run || true
cat ../said; grep '^note: ' ../told
banger vm delete --force place
