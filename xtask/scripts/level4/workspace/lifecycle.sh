#!/bin/sh -eu
# Runs the commands of a devcontainer.json in a sandbox through its creation, a later start and a shell.

rm -rf lifecycle; mkdir -p lifecycle/.devcontainer/shop; cd lifecycle
cat > .devcontainer/shop/devcontainer.json <<'END'
{
    "name": "Shop",
    "image": "debian-bookworm",
    "features": { "ghcr.io/devcontainers/features/node:1": { "version": "20" } },
    "initializeCommand": "touch initialized",
    "onCreateCommand": "echo create >> log",
    "updateContentCommand": ["sh", "-c", "echo update >> log"],
    "postCreateCommand": { "one": "echo $STAGE > one", "two": "echo ${containerEnv:STAGE} > two" },
    "postStartCommand": "echo start >> log",
    "postAttachCommand": "echo attach >> log; sleep 600",
    "waitFor": "onCreateCommand",
    "containerEnv": { "STAGE": 7, "SECRET": "${localEnv:HOME}" },
    "remoteEnv": { "PATH": "${containerEnv:PATH}:/opt/shop" },
    "forwardPorts": [8126, "db:5432"],
    "appPort": "8125:8124",
    "portsAttributes": { "8126": { "label": "shop" } },
    "mounts": [
        "source=cache-${devcontainerId},target=/var/cache/shop,type=volume",
        { "target": "/mnt/scratch", "type": "tmpfs" },
        "source=/var/run/docker.sock,target=/var/run/docker.sock,type=bind"
    ],
    "customizations": { "vscode": { "extensions": ["example.shop"] } },
}
END
git init -q -b main; git add -A
git -c user.name=Ann -c user.email=a@example.org commit -qm all
serve='import http.server as h; h.ThreadingHTTPServer(("127.0.0.1", 8124), h.SimpleHTTPRequestHandler).serve_forever()'
look='cat log one two; echo path ${PATH##*:}; echo secret ${SECRET-none}; grep -c "^tmpfs /mnt/scratch tmpfs" /proc/mounts; touch /var/cache/shop/kept'
banger vm run --vcpu 1 --name life . -- sh -c "$look; python3 -c '$serve' 2> /dev/null" > ../said 2> ../told &
run=$!
wait_until 300 'the server in the guest' curl -sf -o ../fetched http://127.0.0.1:8125/two
sed 's/^/fetched /' ../fetched
kill $run; wait $run || true
cat ../said; grep -E '^note: |^  ' ../told
test ! -e initialized && echo 'nothing ran on the host'

banger vm stop -q life; banger vm start -q life
again='echo starts $(grep -c start log); ls /var/cache/shop; grep -c "^tmpfs /mnt/scratch tmpfs" /proc/mounts'
banger vm exec life -- sh -c "$again" | sed 's/^/again /'
echo exit | banger vm shell -T life 2>&1 | grep -o 'the postAttachCommand runs in the background'
attached() { banger vm exec life -- grep -q attach log; }
wait_until 180 'the attachment' quietly attached
banger vm exec life -- sh -c 'echo starts $(grep -c start log)' | sed 's/^/then /'
banger vm delete -q --force life
