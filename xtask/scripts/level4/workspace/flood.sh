#!/bin/sh -eu
# Sends a flood of data through a command, a forwarded port and a socket.
mib=$1
echo=$2
send=$3

head -c "${mib}M" /dev/urandom > much
sum() { sha256sum | cut -d ' ' -f 1; }
want=$(sum < much)
banger vm create --quiet --vcpu 1 --name flood
[ "$(banger vm exec flood -- cat < much | sum)" = "$want" ] && echo through a command
banger vm exec -d flood -- python3 -c "$echo"
banger vm forward -L 18080:8080 -L 18081:/run/echo.sock flood 2> forwarded &
forward=$!
forwards() { grep -q 18080 forwarded && grep -q 18081 forwarded; }
wait_until 180 'the forwarded ports' forwards
wait_until 180 'the server in the guest' banger vm exec flood -- test -S /run/echo.sock
banger vm ports --json flood | grep -q '"port": 8080' && echo listed
for port in 18080 18081; do
    [ "$(python3 -c "$send" $port < much | sum)" = "$want" ] && echo through $port
done
kill $forward; wait $forward || true
banger vm delete --force flood
rm much forwarded
