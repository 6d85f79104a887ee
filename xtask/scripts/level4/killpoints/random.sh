#!/bin/bash -eu
# Kills the service with SIGKILL at random moments while it works for alice. After each kill it must answer again, and its
# work must go on; at the end all sandboxes must be deletable. The seed repeats a sequence.
runs=$1
seed=$2

RANDOM=$seed
# Without a session of logind: a new one waits for the end of the one before.
alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
answers() { quietly alice 'banger ls'; }
# What a killed service was asked for may fail.
work() {
    case $1 in
        0) alice "banger create -q --no-start --vcpu 1 --name kill-$2" ;;
        1) alice 'banger start -q kill-base' ;;
        2) alice 'banger stop -q --force kill-base' ;;
        3) alice 'banger vm set --nat --label run=1 kill-base; banger vm set --no-nat kill-base' ;;
        4) alice 'banger vm publish kill-base 8055:22; banger vm unpublish kill-base 8055' ;;
        5) alice "banger vm stop -q --force kill-base; banger vm fork -q --no-start --name fork-$2 kill-base" ;;
        6) alice 'banger rm -q --force $(banger ls -q | head -n 1)' ;;
        7) alice 'banger vm suspend -q kill-base' ;;
        8) alice 'banger vm restart -q --force kill-base' ;;
    esac
}

# Prints what the service does instead.
tell() {
    {
        alice 'timeout 60 banger ls' || true
        systemctl status --no-pager --lines 0 banger-system.service || true
        journalctl --unit banger-system.service --lines 60 --no-pager
    } >&2
    exit 1
}

alice 'banger create -q --no-start --vcpu 1 --name kill-base'
kills=0
for run in $(seq "$runs"); do
    answers && quietly alice 'banger show kill-base' ||
        quietly alice 'banger create -q --no-start --vcpu 1 --name kill-base' || true
    quietly work $((RANDOM % 9)) "$run" &
    sleep "$(printf '0.%03d' $((RANDOM % 900)))"
    pid=$(systemctl show --property MainPID --value banger-system.service)
    if [ "$pid" != 0 ] && kill -KILL "$pid"; then
        kills=$((kills + 1))
    fi
    wait_until 180 "the service after kill $run of seed $seed" answers || tell
    wait $! || true
done
alice 'banger ls -q | xargs -r banger rm -q --force'
[ -z "$(alice 'banger ls -q')" ] && echo "$kills kills, seed $seed"
