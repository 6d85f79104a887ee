#!/bin/sh -eu
# Runs thirty commands at once, and one more beside thirty connections that are never answered.

banger vm create --name crowd
for n in $(seq 30); do banger vm exec -T crowd -- sh -c "sleep 1; echo $n" > "crowd.$n" & done
wait
cat crowd.* | sort -n | tr '\n' ' '
rm crowd.*
banger vm exec -d crowd -- python3 -c '
import socket, time
silent = socket.socket(socket.AF_UNIX)
silent.bind("/run/silent")
silent.listen(100)
time.sleep(1000)' > /dev/null
wait_until 180 'the server in the guest' banger vm exec crowd -- test -S /run/silent
banger vm forward -L 7090:/run/silent crowd 2> forwarded &
forward=$!
wait_until 180 'the forwarded port' grep -q 7090 forwarded
bash -c 'for n in $(seq 30); do exec {fd}<>/dev/tcp/127.0.0.1/7090; done; touch crowded; sleep 1000' &
browser=$!
wait_until 180 'thirty connections' test -e crowded
rm crowded
banger vm exec -T --timeout 180 crowd -- echo in time
banger vm health crowd > healthy
banger vm stop crowd
kill $forward
kill $browser
banger vm delete crowd
