#!/bin/sh -eu
# Lets a command eat all memory of a guest twice while another command runs, and prints the outcome. An empty `image`
# means the default one.
image=$1

if [ -n "$image" ]; then set -- --image "$image"; else set --; fi
banger vm create --quiet --memory 512M "$@" --name hog
banger vm exec -T hog -- sh -c 'until [ -e /run/enough ]; do sleep 0.2; done; echo goes on' > other &
other=$!
for _ in 1 2; do
    status=0
    banger vm exec -T hog -- tail /dev/zero || status=$?
    echo "hog: $status"
done
banger vm exec -T hog -- touch /run/enough
wait $other
echo "other: $(cat other)"
banger vm show --json hog | grep -o '"ready": *true'
banger vm delete --force hog
rm other
