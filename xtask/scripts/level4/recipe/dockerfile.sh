#!/bin/sh -eu
# Builds an image of a Dockerfile, and two that do not come to their end.

cd "$(mktemp -d)"
base=$(sed -n 's/^base = "\(.*\)"/\1/p' /etc/banger/recipes/first.toml)
mkdir -p src/sub; echo a > src/a.txt; echo b > src/b.log; echo c > src/sub/c.txt
echo 'src/*.log' > .dockerignore
cat > Dockerfile << END
ARG BASE
FROM \$BASE
ENV WORDS="two words"
WORKDIR /srv
COPY src app/
WORKDIR app
RUN echo "\$WORDS in \$(pwd)" > /etc/said
USER nobody
END
banger image build . --name app --build-arg "BASE=$base"
banger vm run --rm --quiet --image app -- sh -c 'echo "$(cat /etc/said) as $(id -un)"; echo $(ls)'
banger image delete app > /dev/null
printf 'FROM %s\n\nRUN false\n' "$base" > Dockerfile
banger image build . --name bad 2> err || echo "failed $?"
grep -o 'line 3: RUN false: it exited with status 1' err | head -n 1
printf 'FROM %s\nRUN echo begun; sleep 1000\n' "$base" > Dockerfile
banger image build . --name slow > out 2>&1 &
build=$!
wait_until 240 'the step that does not end' grep -q begun out
kill $build
wait $build || echo "interrupted $?"
[ "$(banger vm list --json | tr -d ' \n')$(banger image list --json | grep -c '"name": *"\(base-\|bad\|slow\)')" = '[]0' ] && echo nothing is left
