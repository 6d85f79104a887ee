# shellcheck shell=sh
# Stops all sandboxes and the service, and removes the network of guests. Scripts of packages source this before the
# service is removed: afterwards nothing of banger is there to do it.

manager=dev.banger.Manager1
vmms='banger-vm-*.service'
# How long guests may take to shut down, in microseconds. Those that take longer are powered off.
limit=90000000

if systemctl --quiet is-active "$vmms"; then
    # All at once. One that is stopped already has no job.
    jobs=$(busctl --list tree $manager 2> /dev/null | grep '^/dev/banger/Manager1/vm/' | while read -r vm; do
        busctl call $manager "$vm" $manager.VM Stop 'a{sv}' 0 2> /dev/null | cut -d '"' -f 2
    done)
    for job in $jobs; do
        busctl --quiet --timeout=120 call $manager "$job" $manager.Job Wait t $limit 2> /dev/null || true
    done
    systemctl stop "$vmms" || true
fi
# D-Bus would start the service again for the next client. The package's last script removes the mask.
systemctl mask --runtime --quiet banger-system.service || true
systemctl stop banger-system.service 'banger-import-*.service' || true
# The slices of users end with it.
systemctl stop banger.slice || true
if command -v nft > /dev/null; then
    # Forwarding goes first, and then the rules that restrict it. It stays on a host that is a router.
    if [ "$(cat /proc/sys/net/ipv4/conf/all/forwarding)" = 0 ]; then
        nft list set inet banger opened 2> /dev/null | grep -o '"[^"]*"' | tr -d '"' | while read -r link; do
            for switch in "ipv4/conf/$link/forwarding" "ipv6/conf/$link/force_forwarding"; do
                if [ -e "/proc/sys/net/$switch" ]; then
                    echo 0 > "/proc/sys/net/$switch" || true
                fi
            done
        done
    fi
    nft delete table inet banger 2> /dev/null || true
fi
if command -v ip > /dev/null; then
    # A pair goes with one of its ends.
    ip -o link | grep -o -E ' (bgr-[^:@]+|banger0)[:@]' | tr -d ' :@' | while read -r link; do
        ip link delete "$link" 2> /dev/null || true
    done
fi
# Disks that a killed VMM or service has left attached.
if command -v dmsetup > /dev/null; then
    dmsetup ls 2> /dev/null | grep -o -E '^banger-[0-9a-f]{32}' | while read -r disk; do
        dmsetup remove --retry "$disk" 2> /dev/null || true
    done
fi
if command -v losetup > /dev/null; then
    losetup --list --noheadings --output NAME,BACK-FILE 2> /dev/null | while read -r device file; do
        case $file in
            /var/lib/banger/*) losetup --detach "$device" 2> /dev/null || true ;;
        esac
    done
fi
