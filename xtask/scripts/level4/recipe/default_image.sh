#!/bin/sh -eu
# Runs two commands in sandboxes of the default image at once, which is built by one of them, and looks at the image.

cd "$(mktemp -d)"
for number in 1 2; do
    banger vm run --rm -- cat /etc/built > out$number 2> err$number &
done
wait
cat err1 err2 >&2
echo "built $(cat err1 err2 | grep -c 'building the default image first') time" | sed 's/ 1 / one /'
cat out1 out2
look='printf "machine id: %s\n" "$(wc -c < /etc/machine-id)"
[ -e /root/.ash_history ] || echo history is gone
[ -e /root/kept ] && echo work disk was kept'
banger vm run --rm --quiet -- sh -c "$look"
banger image show first --json > shown
grep -o '"source": *"[a-z]*' shown | cut -d '"' -f 4
grep -o '"org.opencontainers.image.base.name": *"[^"@]*' shown | cut -d '"' -f 4
grep -q '"dev.banger.recipe": *"first.toml sha256:' shown && echo recipe first.toml
banger image list --json | grep -q '"name": *"base-' || echo no base is left
banger vm run --rm -- true 2> err
grep -q building err || echo no second build
banger image delete first > /dev/null
