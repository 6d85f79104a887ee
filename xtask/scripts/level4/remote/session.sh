#!/bin/sh -eu
# Uses sandboxes through a server of ssh, without a system bus.

mkdir -m 700 remote
cd remote
ssh-keygen -q -t ed25519 -N '' -f host_key
ssh-keygen -q -t ed25519 -N '' -f user_key
cp user_key.pub authorized_keys
cat > sshd_config << END
HostKey $PWD/host_key
AuthorizedKeysFile $PWD/authorized_keys
UsePAM no
PidFile none
StrictModes no
END
sed 's/^/lab /' host_key.pub > known_hosts
# ssh reads the configuration of the user's home.
mkdir -p ~/.ssh
chmod 700 ~/.ssh
cat > ~/.ssh/config << END
Host lab
ProxyCommand /usr/local/bin/sshd-of-tests -i -f $PWD/sshd_config 2> $PWD/log
IdentityFile $PWD/user_key
IdentitiesOnly yes
UserKnownHostsFile $PWD/known_hosts
END
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent/bus
banger ps 2> refused || { grep -q 'system bus' refused && echo no local bus; }
banger context add lab ssh://lab > added
banger context use lab > used
banger run --rm -q --vcpu 1 -- echo hello
banger create -q --vcpu 1 --name web
status=0; echo in | banger exec -i web sh -c 'cat > /root/in; exit 42' || status=$?
echo status $status
banger ps -q
seq 100000 > numbers
banger cp -q numbers web:/root/numbers
banger cp -q web:/root/numbers back
cmp numbers back
echo copied
banger exec -d web -- python3 -m http.server --bind 127.0.0.1 --directory /root 8080 > number
banger forward -d web 18080:8080
wait_until 180 'the server in the guest' curl -sf -o fetched http://127.0.0.1:18080/numbers
cmp numbers fetched
echo forwarded
banger forward --stop web
banger logs --tail 5 web > log && echo console
# A terminal, whose size reaches the guest.
script -qec 'stty rows 31 cols 97; banger exec -it web stty size' /dev/null < /dev/null > shown
grep -q '31 97' shown && echo size 31 97
banger delete --force web
banger context use default > used
banger context delete lab > deleted
ssh -S "$(find "${XDG_RUNTIME_DIR:-$HOME/.local/state}/banger/ssh" -type s)" -O exit lab 2> ended
echo ended
cd
rm -r remote .ssh/config
[ ! -e remote ] && echo clean
