#!/bin/sh -eu
# A directory of alice is mounted while a command runs, with her rights and no more.

rm -rf mounted outside; mkdir mounted outside; cd mounted
git init -q -b main .; git config user.name Alice; git config user.email alice@example.org
for number in $(seq 60); do echo "$number" > "file$number"; done
git add .; git commit -qm first
echo closed > closed; chmod 000 closed; echo closed >> .git/info/exclude
echo secret > ../outside/secret; ln -s ../outside/secret up; echo up >> .git/info/exclude

banger run -q -d --vcpu 1 --name mount > /dev/null
is_unmounted() { quietly banger exec -n mount -- sh -c '! grep -q /srv/here /proc/mounts'; }
exec_in() { banger exec -n --mount .:/srv/here -w /srv/here mount -- sh -ec "$1"; }
exec_in '
    git config --global --add safe.directory /srv/here
    [ -z "$(git status --porcelain)" ] && echo clean
    echo more >> file7; git status --porcelain
    git -c user.name=Eve -c user.email=e@e commit -qam "from the sandbox"
    dd if=/dev/urandom of=big bs=64k count=80 2> /dev/null; cp -a big copy; cmp big copy && echo same
    mkdir -p deep/er; mv copy deep/er/; rm -r deep; truncate -s 1000 big
    cp /bin/true tool; chmod 4755 tool; echo "tool $(stat -c "%a %U" tool)"
    cat closed 2> /dev/null || echo closed stays closed
    cat up 2> /dev/null || echo links lead nowhere
    chown 1234 tool; [ "$(stat -c %U tool)" = root ] && echo owners stay
    mkfifo pipe 2> /dev/null || echo no pipe'
git log -1 --format='commit: %an: %s'
echo "big: $(stat -c '%s %U' big), tool: $(stat -c '%a %U' tool)"
wait_until 120 'the end of the first mount' is_unmounted
banger exec -n mount -- sh -c 'echo "left: $(ls -A /srv/here | wc -l)"'

# It is not changed by who may only read, not even by root of the guest.
banger exec -n -v .:/srv/here:ro mount -- sh -c '
    cat /srv/here/file1; touch /srv/here/new 2> /dev/null || echo read-only
    mount -o remount,rw /srv/here; touch /srv/here/new 2> /dev/null || echo still read-only'
[ -e new ] || echo nothing new

# Who runs the command owns the files.
banger exec -n -u 1234 -v .:/srv/here mount -- sh -c 'cd /srv/here; echo mine > of-user; stat -c "of user: %u" of-user'
stat -c 'of user: %U' of-user

# Programs that are left behind get errors when the client is gone.
banger exec -n -v .:/srv/here mount -- sh -c 'cd /srv/here; echo begun > begun; sleep 1000' &
client=$!
has_begun() { [ -e begun ]; }
wait_until 120 'the command' has_begun
kill -9 "$client"; wait "$client" 2> /dev/null || true
wait_until 120 'the end of the last mount' is_unmounted
echo ended

banger exec -n -v .:/proc/here mount -- true 2>&1 || true
banger rm -q --force mount
banger run -q --rm --vcpu 1 -v .:/srv/here -- cat /srv/here/file2
chmod 600 closed; cd ..; rm -rf mounted outside
