#!/bin/sh -eu
# A sandbox of `run -d --rm` is deleted when its command ends. Nothing but the service and the guest is there to do it.

run() { banger run -d --rm -q --vcpu 1 "$@"; }
is_gone() { ! quietly banger show "$1"; }

name=$(run --name job -- sh -c 'sleep 5; exit 7')
echo "name $name"
# The client that started it is gone, and this one gets the status before the sandbox is.
echo "waited $(banger wait job)"
wait_until 180 'the end of job' is_gone job
echo gone

# A command that ends at once.
run --name brief -- true
wait_until 180 'the end of brief' is_gone brief
echo 'brief gone'

# A sandbox without a command is deleted when it stops.
run --name idle
banger stop -q idle
wait_until 180 'the end of idle' is_gone idle
echo 'idle gone'

# Without --rm, the sandbox stays, with the status.
banger run -d -q --vcpu 1 --name stays -- sh -c 'exit 9'
echo "stays $(banger wait stays)"
banger show --json stays | grep '"state"'
banger rm -q --force stays
