#!/bin/sh -eu
# Loads modules in a guest, and prints what systemd says of its boot.

banger vm create --quiet --name mods
banger vm exec mods -- sh -ec '
    until [ -S /run/systemd/private ]; do sleep 0.2; done
    echo "system: $(systemctl is-system-running --wait)"
    systemctl --failed --no-legend --plain
    dir=/usr/lib/modules/$(uname -r)
    test -s $dir/modules.dep.bin && touch $dir/x 2> /dev/null || echo read-only
    echo "lost: $(ls $dir | grep -c lost || true)"
    for name in bridge br_netfilter veth nf_tables nft_chain_nat xt_MASQUERADE wireguard fuse overlay tun loop \
        dm_mod btrfs squashfs nfs binfmt_misc; do
        modprobe $name || echo "no $name"
    done
    ip link add wg0 type wireguard && ip -oneline link show wg0
    ip link add br0 type bridge && ip -oneline link show br0
    ls -l /dev/fuse /dev/net/tun /dev/loop-control
    echo "alias: $(modprobe --resolve-alias fs-fuse) $(modprobe --show-depends br_netfilter | wc -l)"' > said
cat said
banger kernel show debian | grep module_tree_size
banger vm delete --force --quiet mods
