#!/bin/sh -eu
# Runs containers with Docker and Podman from an image that is built from a tar, so nothing is downloaded.

banger vm create --quiet --memory 2G --image containers --name ship
banger vm exec ship -- sh -ec '
    until [ -S /run/systemd/private ]; do sleep 0.2; done
    systemctl is-system-running --wait || true
    mkdir -p /tmp/root/bin /tmp/root/www
    cp /bin/busybox /tmp/root/bin/
    echo content > /tmp/root/www/index.html
    tar -C /tmp/root -cf /tmp/box.tar . && chmod 644 /tmp/box.tar
    serve="-p PORT:80 box /bin/busybox httpd -f -p 80 -h /www"
    ask() { curl -sf --retry 120 --retry-connrefused --retry-all-errors --retry-delay 1 http://127.0.0.1:$1/; }
    systemctl start docker
    docker import /tmp/box.tar box > /dev/null
    # The image has no apparmor_parser, which Debian only recommends.
    docker run -d --security-opt apparmor=unconfined $(echo $serve | sed s/PORT/8080/) > /dev/null
    echo "docker: $(ask 8080) $(docker info --format "{{.Driver}} {{.CgroupVersion}}")"
    # The server of a network of Docker answers for its containers, and asks the guest for other names.
    docker network create net > /dev/null
    in_net="--security-opt apparmor=unconfined --network net"
    docker run -d --name web $in_net box /bin/busybox httpd -f -p 80 -h /www > /dev/null
    echo "docker network: $(docker run --rm $in_net box /bin/busybox wget -q -O - http://web/)"
    docker run --rm $in_net box /bin/busybox nslookup -type=a ship.vm | sed -n "s/^Name:[[:space:]]*/docker DNS: /p"
    podman import --quiet /tmp/box.tar box > /dev/null
    podman run -d $(echo $serve | sed s/PORT/8081/) > /dev/null
    echo "podman: $(ask 8081)"
    touch /etc/subuid /etc/subgid
    useradd --create-home --shell /bin/sh dev
    loginctl enable-linger dev
    until [ -d /run/user/$(id -u dev) ]; do sleep 0.2; done
    runuser -l dev -c "export XDG_RUNTIME_DIR=/run/user/$(id -u dev); cd
        podman import --quiet /tmp/box.tar box > /dev/null
        podman run -d $(echo $serve | sed s/PORT/8082/) > /dev/null"
    echo "rootless: $(ask 8082)"
    mkdir /tmp/upper /tmp/work /tmp/mount
    fuse-overlayfs -o lowerdir=/tmp/root,upperdir=/tmp/upper,workdir=/tmp/work /tmp/mount
    echo more >> /tmp/mount/www/index.html
    echo "FUSE: $(cat /tmp/upper/www/index.html | tr "\n" " ")$(stat --file-system --format %T /tmp/mount)"
    ' > said 2>&1 || echo failed
cat said
banger vm delete --force --quiet ship
