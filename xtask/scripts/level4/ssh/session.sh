#!/bin/sh -eu
# Uses ssh, scp, rsync and forwarded ports.

banger ssh-config --install
banger vm create --vcpu 1 --name web
serve web
ssh web.vm hostname
[ "$(ssh web.alice.vm id -un)" = root ]
status=0; ssh web.vm 'exit 42' || status=$?
echo status $status
seq 100000 > numbers
scp -q numbers web.vm:
scp -q web.vm:numbers copied
cmp numbers copied
mkdir -p tree/deep; echo leaf > tree/deep/leaf
rsync -a -e ssh tree/ web.vm:tree/
ssh web.vm cat tree/deep/leaf
ssh -f -N -o ExitOnForwardFailure=yes -L 18080:localhost:8080 -o ControlMaster=yes -S control web.vm
ssh web.vm 'cd tree/deep; python3 -m http.server --bind 127.0.0.1 8080 > /dev/null 2>&1 < /dev/null &'
wait_until 180 'the server in the guest' curl -sf -o fetched http://127.0.0.1:18080/leaf
sed 's/^/fetched /' fetched
ssh -S control -O exit web.vm 2> /dev/null
[ ! -e .ssh/known_hosts ] && echo trusts nothing
banger vm stop web
ssh web.vm true 2> refused && exit 1
grep -q 'banger vm start web' refused && echo advised
ssh -p 80 web.vm true 2> refused && exit 1
grep -q 'only port 22' refused && echo one port
banger vm delete --force web
banger ssh-config --uninstall
[ ! -e .ssh/config ] && echo clean
