#!/bin/sh -eu
# Copies a tree in and out, and compares both sides.
make=$1
list=$2

rm -rf copies; mkdir copies; cd copies; umask 0
banger vm create --quiet --vcpu 1 --name copy > /dev/null
printf '%s\n' "$make" | sh -e
banger vm cp t copy: 2> said
(cd t; printf '%s\n' "$list" | sh -e) > here
banger vm exec copy -- sh -ec "cd t; $list" > there
diff here there && grep -q sparse there && echo in
grep -c 'is a fifo, and was not copied\|is a socket, and was not copied' said

banger vm exec copy -- sh -ec "mkdir /srv/g; cd /srv/g; $make"
banger vm cp copy:/srv/g/t out 2> said
banger vm exec copy -- sh -ec "cd /srv/g/t; $list" > there
(cd out; printf '%s\n' "$list" | sh -e) > here
diff there here && grep -q sparse here && echo out
grep -c 'is a fifo, and was not copied\|is a socket, and was not copied' said
(umask 077; banger vm cp -q copy:/srv/g/t strict)
stat -c %a strict strict/dir strict/dir/sub | tr '\n' ' '; echo

banger vm cp --chown nobody -q here copy:/tmp/theirs
banger vm exec copy -- stat -c %U /tmp/theirs
banger vm cp -q copy:/srv/g/t/. - | banger vm cp -q - copy:/srv/again
banger vm exec copy -- sh -ec 'cd /srv; diff g/t/file again/file && echo piped'
banger vm cp -q copy:/srv/g/t copy:/srv/twin
banger vm exec copy -- sh -ec "cd /srv/twin; $list" | diff there - && echo between
tar -cz t/file t/dir | banger vm cp -q - copy:/srv/unpacked
banger vm cp -q -r copy:/srv/unpacked/t/file copy:/srv/g/t/dir/. several
echo several/* | sed 's,several/,,g'
head -c 64M /dev/urandom > big
banger vm cp -q big copy:/srv/again/ &
copy=$!
wait_until 180 'the copy' quietly banger vm exec copy -- sh -c 'ls -d /srv/again/.banger-*'
kill -TERM $copy; wait $copy || echo ended $?
is_cleared() { quietly banger vm exec copy -- sh -c '! ls -d /srv/again/.banger-* && ! ls /srv/again/big'; }
wait_until 180 'the end of the partial copy' is_cleared && echo cleared
banger vm delete --force copy > /dev/null
