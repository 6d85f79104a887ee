#!/usr/bin/python3
# Runs a command in the guest, by banger and by ssh, and completes the name of a sandbox.

import os
import subprocess
import time
from __main__ import run, runs, seen, ssh, timed

service = "dev.banger.Manager1"
call = ["busctl", "--system", "call", service, "/dev/banger/Manager1", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"]
words = ["banger", "--", "banger", "vm", "exec", "be"]
os.environ.update({"_CLAP_IFS": "\n", "_CLAP_COMPLETE_INDEX": "3", "_CLAP_COMPLETE_COMP_TYPE": "9", "_CLAP_COMPLETE_SPACE": "false"})
complete = {**os.environ, "BANGER_COMPLETE": "bash"}
told = subprocess.run(words, env=complete, capture_output=True, text=True).stdout
assert told.strip() == "bench", told
def complete_once():
    begin = time.perf_counter()
    run(*words, env=complete)
    seen.setdefault("complete", []).append((time.perf_counter() - begin) * 1000)
for turn in range(runs):
    timed("exec", ["banger", "vm", "exec", "bench", "--", "true"])
    timed("ssh", [*ssh, "true"])
    complete_once()
    timed("busctl", call)
