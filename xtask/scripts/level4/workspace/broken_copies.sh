#!/bin/sh -eu
# Copies to a full disk, and from a sandbox that is killed meanwhile.

rm -rf here; mkdir here; cd here
head -c 64M /dev/urandom > big
banger vm create --quiet --vcpu 1 --name frail
banger vm exec frail -- sh -ec '
    free=$(df --output=avail -k /root | tail -n 1)
    fallocate -l $((free - 2048))K /root/ballast'
status=0; banger vm cp -q big frail:/root/ 2> said || status=$?
grep -q 'the disk of the sandbox is full' said && echo full $status
status=0; banger vm workspace prepare -q frail ../project 2> said || status=$?
grep -q 'the disk of the sandbox is full' said && echo full too $status
banger vm exec frail -- sh -ec 'test ! -e /root/repo; rm -f /root/ballast /root/big; echo usable'
banger vm exec frail -- sh -c 'df --output=used -k /root | tail -n 1' | awk '$1 < 16384 { print "cleared" }'
banger vm cp -q big frail:/root/big
banger vm cp -q frail:/root/big came 2> said &
copy=$!
copies() { ls -d .banger-* > /dev/null 2>&1; }
wait_until 180 'the copy' copies
banger vm kill frail
status=0; wait $copy || status=$?
cat said >&2
grep -q '^error: ' said && echo lost $status
[ ! -e came ] && ! ls -d .banger-* 2> /dev/null && echo nothing here
banger vm delete --force frail
