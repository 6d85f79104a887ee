#!/bin/bash -eu
# Asks for allowed and other names in a guest with an egress policy, and changes the policy while it runs.
# shellcheck disable=SC2154 # tools.sh comes first.

create box --egress 'internet.test,*.internet.test:80'
# Prints the status of the answer, and whether there was an answer or an error before curl gave up.
get() {
    in_time=1
    status=$(in_guest box "curl -s -o /dev/null -w '%{http_code}' -m 60 http://$1/; [ \$? != 28 ]") || in_time=0
    echo "$2: $status in time $in_time"
}
get internet.test allowed
get other.test 'not allowed'
get 203.0.113.3 'a literal address'
echo "the host reaches the server inside: $(knocks 10.0.0.1 80)"
told() { in_guest box 'getent ahostsv4 rebind.internet.test' | cut -d ' ' -f 1 | sort -u; }
echo "a name that leads inside has: $(told)."
get rebind.internet.test 'a name that leads inside'
banger vm egress allow box 10.0.0.1:81
echo "a name that leads to an allowed address has: $(told)."
get rebind.internet.test 'another port of that address'
denied() { banger vm egress box | grep "^$1 " | tr -s ' ' | cut -d ' ' -f 1-3; }
wait_until 180 'the denied address' quietly denied 203.0.113.3
echo "denied: $(denied other.test)"
echo "denied: $(denied 203.0.113.3)"
banger vm egress --json box | grep -q '"destination": *"other.test"' && echo 'in json: other.test'
banger vm egress allow box other.test
get other.test 'allowed now'
banger vm egress deny box other.test
get 203.0.113.3 'denied again'
banger vm set --egress none box
get internet.test 'nothing allowed'
banger vm delete --force box
if banger vm create --quiet --egress '*.com' --name wrong 2> /tmp/wrong; then
    echo 'created with a wrong policy'
fi
grep -q 'neither a preset, a host' /tmp/wrong && echo 'a wrong entry: refused'
