#!/bin/sh -eu
# Lists sandboxes, creates one, starts it, and deletes it, with busctl alone.
#
# busctl cannot follow signals as a user, so this reads the properties of a job until it has ended.

service=dev.banger.Manager1
manager=/dev/banger/Manager1

# Replies are a signature and values, with texts in quotes: this prints the values alone.
call() { busctl call "$@" | cut -d ' ' -f 2- | tr -d '"'; }
property() { busctl get-property $service "$1" $service."$2" "$3" | cut -d ' ' -f 2- | tr -d '"'; }

# Prints the stages of a job until it has ended, and fails if it did.
finish() {
    shown=
    while result=$(property "$1" Job Result) && [ -z "$result" ]; do
        stage="$(property "$1" Job StageIndex)/$(property "$1" Job StageCount) $(property "$1" Job Message)"
        [ "$stage" = "$shown" ] || echo "  $stage"
        shown=$stage
        sleep 0.2
    done
    echo "$(property "$1" Job Kind): $result"
    [ "$result" = "done" ] || { property "$1" Job ErrorMessage >&2; exit 1; }
}

# The first word of the list is how many there are.
echo "sandboxes: $(call $service $manager $service ListVMs 'a{sv}' 0 | cut -d ' ' -f 1)"

# The reply has two paths: of the sandbox, and of the job that creates it.
paths=$(call $service $manager $service CreateVM 'sa{sv}' "" 2 memory t 536870912 start b false)
vm=${paths% *}
finish "${paths#* }"

finish "$(call $service "$vm" $service.VM Start 'a{sv}' 0)"
echo "$(property "$vm" VM State) at $(property "$vm" VM Address)"

finish "$(call $service "$vm" $service.VM Delete 'a{sv}' 1 force b true)"
