#!/bin/sh -eu
# Has the parser of Prometheus read the metrics of the host. It wants a time at each sample. Prints how many it read.
promtool=$1

directory=$(mktemp -d)
banger metrics --all-users > "$directory/metrics"
sed '/^#/!s/$/ 1700000000.0/' "$directory/metrics" > "$directory/timed"
"$promtool" tsdb create-blocks-from openmetrics "$directory/timed" "$directory/blocks" > "$directory/said"
echo "samples $(grep -vc '^#' "$directory/metrics")"
echo "blocks $(find "$directory/blocks" -name meta.json | wc -l)"
echo "read $(grep -ho '"numSamples": *[0-9]*' "$directory"/blocks/*/meta.json | grep -o '[0-9]*$')"
# It is strict: a text that is cut off is refused.
sed '$d' "$directory/timed" > "$directory/cut"
if quietly "$promtool" tsdb create-blocks-from openmetrics "$directory/cut" "$directory/none"; then
    echo 'the parser accepts a text without its end' >&2
    exit 1
fi
rm -r "$directory"
