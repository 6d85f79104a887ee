#!/bin/sh -eu
# Sends the project into a sandbox, works on it, and brings the work back.
digest=$1

cd project
banger vm run --quiet --vcpu 1 --name work . -- git status --short > ../status
[ ! -s ../status ] && echo clean
banger vm exec work -- sh -ec '
    pwd
    git config user.name Ann; git config user.email ann@example.org
    printf "\000\001binary\377" > "a b.bin"; git add .; git commit -qm binary
    sed -i "s/^# banger/# changed/" README.md
    git rm -q deny.toml; git commit -qm removed
    mkdir -p deep/er; echo new > "$(printf "deep/er/odd\nname")"
    ln -s ../README.md deep/link; chmod +x Cargo.toml
    mkdir -p target; echo no > target/ignored
    git add deep/link'
state='sha256sum .git/index; git for-each-ref; git status --porcelain'
banger vm exec work -- sh -c "$state" > ../before
banger vm workspace export work -o ../work.patch
git apply --check ../work.patch && echo patch applies
banger vm workspace export work --apply
banger vm exec work -- sh -c "$state" > ../after
cmp ../before ../after && echo untouched
banger vm exec work -- rm -r target
banger vm exec work -- sh -c "$digest" > ../there
sh -c "$digest" > ../here
cmp ../here ../there && echo same
git add -A; git -c user.name=Ann -c user.email=a@example.org commit -qm applied
echo more >> README.md
banger vm exec work -- true 2> ../warned
grep -q 'has moved from' ../warned && echo drift
banger vm exec --auto-prepare work -- tail -n 1 README.md
banger vm exec work -- true 2> ../warned
[ ! -s ../warned ] && echo settled
status=0; banger vm exec work -- sh -c 'exit 42' || status=$?
echo status $status
banger vm delete --force work
