#!/bin/sh -eu
# Uses `banger vm ssh`.

banger vm create --quiet --vcpu 1 --name bare
serve bare
echo hello | banger vm ssh bare -- cat
status=0; banger vm ssh bare -- exit 7 || status=$?
echo status $status
[ ! -e .ssh/config ] && echo untouched
banger vm stop bare
status=0; banger vm ssh bare || status=$?
echo status $status
banger vm delete bare
banger vm create --quiet --vcpu 1 --name bare
serve bare
banger vm ssh bare -- echo known again
banger vm delete --force bare
