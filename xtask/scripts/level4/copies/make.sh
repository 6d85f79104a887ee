#!/bin/sh -eu
# Creates a tree with everything that a copy keeps, and what it leaves out.

mkdir -p t/dir/sub; cd t
echo x > file; ln file dir/second; chmod 640 file
ln -s /etc/passwd away; ln -s file near
truncate -s 300M holes; printf data | dd of=holes bs=1 seek=200M conv=notrunc status=none
mkfifo pipe; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
touch "odd
name"
chmod 1777 dir; chmod 2750 dir/sub
touch -d @1000000000 dir/sub file; touch -h -d @1100000000 near; touch -d @1200000000 dir
