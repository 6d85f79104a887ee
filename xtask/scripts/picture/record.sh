#!/bin/sh -eu
# Records a session on a terminal of this size, with its times, in a repository that is worth a sandbox.
session=$1
columns=$2
rows=$3

rm -rf picture
mkdir -p picture/shop
cd picture/shop
banger vm delete --force --quiet shop > /dev/null 2>&1 || true
git init --quiet --initial-branch main
cat > test.sh <<'END'
#!/bin/sh
[ "$(sh price.sh 3)" = "36 EUR" ] && echo "1 test passed"
END
echo 'echo "$(($1 * 11)) EUR"' > price.sh
chmod +x test.sh
git add -A
git -c user.name=Alice -c user.email=alice@example.org commit --quiet --message all
export SESSION="$session" GIT_PAGER=cat
# An input that ends would reach the guest as a character.
rm -f ../input
mkfifo ../input
sleep 600 > ../input &
open=$!
script --quiet --return --log-out ../output --log-timing ../times \
    --command "stty cols $columns rows $rows; bash -c \"\$SESSION\"" < ../input > /dev/null
kill "$open"
