#!/bin/sh -eu
# Creates and shows a sandbox by busctl.

service=dev.banger.Manager1 manager=/dev/banger/Manager1
busctl call $service $manager $service CreateVM 'sa{sv}' by-hand 2 start b false vcpus u 1
vm=$(busctl tree --list $service | grep /vm/)
busctl introspect $service "$vm" $service.VM | grep -q StateChanged
busctl get-property $service "$vm" $service.VM Name
banger vm delete by-hand
