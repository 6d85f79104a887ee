#!/bin/sh -eu
# Uses clients of ssh that cannot receive a descriptor, and names in any case.

banger ssh-config --install
banger vm create --quiet --vcpu 1 --name web
serve web
echo "by bytes: $(ssh -o ProxyUseFdpass=no web.vm hostname)"
echo "any case: $(ssh Web.VM hostname) $(ssh -o ProxyUseFdpass=no WEB.vm hostname)"
seq 200000 > numbers
scp -q -o ProxyUseFdpass=no numbers web.vm:
ssh -o ProxyUseFdpass=no web.vm cat numbers | cmp - numbers && echo the same bytes
echo "end of input: $(ssh -o ProxyUseFdpass=no web.vm wc -l < numbers)"
status=0; ssh -o ProxyUseFdpass=no web.vm exit 7 || status=$?
echo "status $status"
banger vm delete --force web
banger ssh-config --uninstall
