#!/bin/bash -eu
# Asks for credentials of registries in a guest, as docker calls its helper: as root, and as another user.

cd "$(mktemp -d)"
mkdir -p ~/.docker
auth=$(printf ann:secret | base64)
other=$(printf eve:other | base64)
echo "{\"auths\": {\"one.test\": {\"auth\": \"$auth\"}, \"two.test\": {\"auth\": \"$other\"}}}" > ~/.docker/config.json
banger vm create --quiet --name registries > /dev/null
banger vm exec registries -- sh -c 'mkdir -p ~/.docker; echo "{\"auths\": {\"kept.test\": {}}}" > ~/.docker/config.json'
banger vm exec --share docker:one.test registries -- sh -c '
    printf one.test | docker-credential-banger get | grep -q "\"Secret\":\"secret\"" && echo "the password: ok"
    printf two.test | docker-credential-banger get || true
    grep -q "\"one.test\": *\"banger\"" $DOCKER_CONFIG/config.json && grep -q kept.test $DOCKER_CONFIG/config.json &&
        grep -q kept.test $REGISTRY_AUTH_FILE && echo "of the guest: kept"' 2> told
cat told
banger vm exec --user 1234 --share docker:one.test registries -- sh -c '
    printf one.test | docker-credential-banger get | grep -q secret && echo "the user: ok"' 2> /dev/null
gone() { [ -z "$(banger vm exec registries -- sh -c 'ls -d /run/banger-registries-* 2> /dev/null || true')" ]; }
wait_until 120 'the end of the helper' gone
echo 'nothing is left'
banger vm delete --force --quiet registries
rm -r ~/.docker
