#!/bin/bash -eu
# Connects to published ports from the network.

outside() { ip netns exec internet timeout 30 bash -c "head -c 4 < /dev/tcp/203.0.113.1/$1" 2> /dev/null || echo no; }
echo "outside on loopback: $(outside 8022)"
banger vm publish --public alice/web 8023:22
echo "outside: $(outside 8023)"
