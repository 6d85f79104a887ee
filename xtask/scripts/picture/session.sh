#!/bin/bash
# The session of the picture in the README: shows each command at a prompt and runs it.

status=0
show() {
    printf '$ \033[1m%s\033[0m\n' "$1"
    sleep 0.5
    eval "(exit $status); $1"
    status=$?
}
show "banger vm run --rm -- sh -c 'uname -sr; id -un; exit 42'"
show 'echo $?'
show "banger vm run --name shop . -- sh -c 'sed -i s/11/12/ price.sh; ./test.sh'"
show 'banger ps'
show 'banger vm workspace export shop --apply'
show 'git diff --stat'
show 'banger vm delete --force shop'
printf '$ '
