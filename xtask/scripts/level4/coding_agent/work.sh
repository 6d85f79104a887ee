#!/bin/bash -eu
# Runs a made-up agent in a repository, twice: its image is built for the first run.

cd "$(mktemp -d)"
base=$(sed -n 's/^base = "\(.*\)"/\1/p' /etc/banger/recipes/first.toml)
presets=~/.config/banger/agents
mkdir -p "$presets" ~/.made-up
echo mine > ~/.made-up/settings
echo secret > ~/.made-up/login
cat > "$presets/made-up.toml" << END
description = "Made up"
command = ["made-up", "--in-sandbox"]
egress = ["internet.test:80"]
pass_env = ["MADE_UP_KEY"]

[[file]]
path = "~/.made-up/settings"

[[file]]
path = "~/.made-up/login"
secret = true

[recipe]
base = "$base"

[[recipe.file]]
path = "/usr/local/bin/made-up"
mode = "0755"
content = '''
#!/bin/bash
shift
# The image has no client of HTTP.
get() {
    timeout 20 bash -c 'exec 3<> "/dev/tcp/\$0/80" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && tail -n 1 <&3' "\$1" 2> /dev/null ||
        echo nothing
}
echo "args: \$*"
echo "key: \$MADE_UP_KEY"
echo "settings: \$(cat ~/.made-up/settings)"
if [ -e ~/.made-up/login ]; then
    echo "login now: \$(cat ~/.made-up/login) \$(stat -c %a ~/.made-up/login)"
else
    echo "login: none"
fi
echo "allowed: \$(get internet.test)"
echo "not allowed: \$(get other.test)"
echo "made by the agent" > made
exit 7
'''
END
git init -q -b main work
cd work
git config user.name Alice
git config user.email alice@example.org
echo begun > file
git add .
git commit -qm first
status=0
MADE_UP_KEY=hidden banger agent made-up --rm --apply -- fix it 2> ../err || status=$?
cat ../err >&2
echo "status $status"
echo "built $(grep -c 'building the image agent-made-up' ../err) time" | sed 's/ 1 / one /'
cat made
git add .
git commit -qm made
sed -i 's/^mode = "0755"/mode = "0555"/' "$presets/made-up.toml"
banger agent made-up --rm --no-apply --with-credentials 2> ../err || true
if grep -q 'building' ../err; then echo 'built again'; fi
grep -q 'agent-made-up was built from another version of the preset' ../err && echo 'the other version is noted'
[ "$(banger vm list --json | tr -d ' \n')" = '[]' ] && echo 'nothing is left'
banger agent list --json | grep -q '"origin": *"user"' && echo "from $(id -un): $(banger agent list | grep -o '^made-up')"
banger image delete agent-made-up > /dev/null
rm -r "$presets" ~/.made-up
