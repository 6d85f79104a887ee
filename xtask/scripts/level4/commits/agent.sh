#!/bin/sh -eu
# An agent's loop in a sandbox: edit, test, commit, merge. The commits come back as they are, and edits follow.

rm -rf loop; git init -q -b main loop; cd loop
git config user.name Alice; git config user.email alice@example.org
printf 'add() { echo $(($1 - $2)); }\n' > add.sh
printf '. ./add.sh\n[ "$(add 2 3)" = 5 ]\n' > test.sh
git add .; git commit -qm first; echo second >> notes; git add .; git commit -qm second
banger vm run -q -d --name work .
banger vm exec work -- sh test.sh || echo test fails
banger vm exec work -- sh -ec '
    git config user.name Eve; git config user.email eve@example.org
    sed -i "s/-/+/" add.sh; sh test.sh; git commit -qam "add: mend it"
    git switch -qc side HEAD~1; echo aside > aside; git add aside; git commit -qm aside --author "Max <max@example.org>"
    git switch -q main; git merge -q --no-ff -m both side; touch left'
head=$(git rev-parse HEAD)
banger vm workspace fetch work > ../fetched 2> ../noted
cat ../fetched
grep -q 'not committed and stayed there: left' ../noted && echo left is named
for branch in main side; do
    [ "$(git rev-parse refs/banger/work/$branch)" = "$(banger vm exec work -- git rev-parse $branch)" ] && echo $branch is equal
done
git log --format='%an: %s' refs/banger/work/main | sort > ../log
cat ../log
[ "$(git rev-parse HEAD)" = "$head" ] && [ -z "$(git status --porcelain)" ] && echo nothing else has changed
git merge -q --ff-only refs/banger/work/main && sh test.sh && echo merged
git fsck --strict 2> /dev/null && echo sound

# Something too large for its size.
banger vm exec work -- sh -ec 'git config core.bigFileThreshold 1m; truncate -s 300M huge; git add huge; git commit -qm huge; sync'
objects=$(find .git/objects | sort | sha256sum)
banger vm workspace fetch -q work 2> ../refused || cat ../refused
[ "$(find .git/objects | sort | sha256sum)" = "$objects" ] && echo nothing is left

echo edited >> notes; touch add.sh
banger vm workspace sync work
banger vm exec --no-auto-prepare work -- tail -n 1 notes
banger vm delete --force --quiet work
