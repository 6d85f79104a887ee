#!/bin/sh -eu
# Copies files that change or have no length.

rm -rf copies; mkdir copies; cd copies
banger vm create --quiet --vcpu 1 --name copy > /dev/null
banger vm exec -d copy -- sh -c 'while :; do seq 1000; sleep 0.2; done > /srv/log' > /dev/null
banger vm exec copy -- sh -c 'until [ -s /srv/log ]; do sleep 0.1; done'
for n in 1 2 3 4 5; do
    banger vm cp -q copy:/srv/log log.$n
    banger vm exec copy -- head -c "$(stat -c %s log.$n)" /srv/log | cmp - log.$n && echo whole
done
for file in /proc/version /sys/class/net/lo/mtu; do
    banger vm cp -q copy:$file out; banger vm exec copy -- cat $file | cmp - out && echo out
    banger vm cp -q $file copy:/srv/in; banger vm exec copy -- cat /srv/in | cmp - $file && echo in
    rm -f out
done
banger vm cp -q copy:/proc/cpuinfo out; grep -q ^processor out && echo processors
banger vm cp -q copy:/dev/null out || echo refused
banger vm delete --force copy > /dev/null
