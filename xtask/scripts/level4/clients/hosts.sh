#!/bin/sh -eu
# Shows that the configuration lists each sandbox, and that sessions in a workspace are in its environment.

listed() { sed -n 's/^Host \([a-z0-9-]*\)\.vm$/\1/p' .config/banger/ssh_config | tr '\n' ' '; }

banger ssh-config --install
banger vm create --quiet --no-start --name one & first=$!
banger vm create --quiet --no-start --name two & second=$!
wait $first $second
echo "listed: $(listed)"
banger vm rename one uno > /dev/null
echo "renamed: $(listed)"
banger vm delete --quiet uno two
echo "deleted: $(listed)"

mkdir repository && cd repository
git init --quiet . && mkdir .devcontainer
cat > .devcontainer/devcontainer.json << 'END'
{ "containerEnv": { "GREETING": "hello there", "EVIL": "x\"\nProxyCommand touch evil" } }
END
git add . && git -c user.name=a -c user.email=a@b commit --quiet -m one
banger vm run --quiet -d --vcpu 1 --name work . && cd ..
serve work
# shellcheck disable=SC2016 # The sandbox expands these.
echo "vm ssh: $(banger vm ssh work pwd), $(banger vm ssh work 'echo $GREETING')"
# shellcheck disable=SC2016
echo "ssh: $(ssh work.vm pwd), $(ssh work.vm 'echo $GREETING')"
echo "login: $(echo 'pwd; exit' | ssh -tt work.vm 2> /dev/null | tr -d '\r' | grep -c '^/root/repo$')"
echo "key in the file: $(ssh -o KnownHostsCommand=none work.vm hostname)"
[ ! -e evil ] && [ ! -e repository/evil ] && echo nothing evil
banger vm delete --quiet --force work
banger ssh-config --uninstall
