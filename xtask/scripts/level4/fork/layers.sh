#!/bin/sh -eu
# Forks a fork, deletes the sandboxes that wrote the layers, and makes an image of what is left.

banger vm create --quiet --name first > /dev/null
banger vm exec first -- sh -c 'echo one > /etc/mark && echo one > /root/mark && sync'
banger vm stop --quiet first > /dev/null
banger vm fork --name second first
banger vm exec second -- sh -c 'echo two >> /etc/mark && echo two >> /root/mark && sync'
banger vm stop --quiet second > /dev/null
banger vm fork --no-start --name third second
banger vm fork --name third second 2> /dev/null || echo 'refused: the name is taken'
banger vm fork -n 100 second 2> /dev/null || echo 'refused: the quota'
banger vm delete --quiet first second > /dev/null
banger vm set --root-size 20GiB --disk-size 12GiB third > /dev/null
banger vm start --quiet third > /dev/null
echo "third has $(banger vm exec third -- cat /etc/mark /root/mark | paste -sd ' ')"
banger vm exec third -- sh -c 'echo "sizes: $(cat /sys/block/vda/size) $(cat /sys/block/vdb/size)"'
banger vm exec third -- sh -c 'echo three >> /etc/mark && sync'
banger vm stop --quiet third > /dev/null
banger vm commit --quiet third forked
echo "the image has $(banger vm run --rm --quiet --image forked -- cat /etc/mark | paste -sd ' ')"
banger image delete forked > /dev/null
banger vm delete --quiet third > /dev/null
