#!/bin/bash -eu
# Publishes ports of a sandbox, two of which are refused.

echo "loopback: $(banger vm publish web 8022:22)"
taken=0; banger vm publish web 8000:22 2> taken || taken=$?
echo "taken: $taken $(grep -c 'port 8000/tcp of this host is taken' taken)"
public=0; banger vm publish --public web 8023:22 2> public || public=$?
echo "public: $public"
