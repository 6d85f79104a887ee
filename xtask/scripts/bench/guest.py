#!/usr/bin/python3
# The beginning of each script that measures a guest: what it measures with, over an open ssh connection to the guest.
# At the end it prints the times.

import atexit
import json
import subprocess
import sys
import time

runs = int(sys.argv[1])
size = sys.argv[2]
small = size == "small"
ssh = ["ssh", "-S", "control", "bench.vm"]
scp = ["scp", "-q", "-o", "ControlPath=control"]
seen = {}


def run(*words, **more):
    return subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, **more)


def timed(key, *steps, cwd=None):
    begin = time.perf_counter()
    for words in steps:
        run(*words, cwd=cwd)
    seen.setdefault(key, []).append((time.perf_counter() - begin) * 1000)


@atexit.register
def end():
    run(*ssh[:-1], "-O", "exit", "bench.vm", stderr=subprocess.DEVNULL)
    run("banger", "ssh-config", "--uninstall")
    print(json.dumps(seen))


run("banger", "ssh-config", "--install")
run("ssh", "-f", "-N", "-o", "ControlMaster=yes", "-S", "control", "bench.vm", stderr=subprocess.DEVNULL)
