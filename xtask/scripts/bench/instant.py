#!/usr/bin/python3
# Runs a command in new sandboxes that boot, and then in new sandboxes that start from a kernel template.

import json, pathlib, subprocess, sys, time
runs = int(sys.argv[1])
config = pathlib.Path("/etc/banger/config.toml")
before = config.read_text() if config.exists() else ""
def run(*words):
    done = subprocess.run(words, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout
def timed():
    begin = time.perf_counter()
    run("banger", "vm", "run", "--quiet", "--rm", "--vcpu", "1", "--", "true")
    return (time.perf_counter() - begin) * 1000
def has_template():
    done = subprocess.run(["banger", "doctor"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return "templates: 1 template takes" in done.stdout
seen = {"cold": [timed() for _ in range(runs)]}
try:
    config.write_text(before + '\n[templates]\ndisk = "2GiB"\n')
    run("systemctl", "restart", "banger-system")
    timed()
    end = time.monotonic() + 240
    while not has_template():
        if time.monotonic() > end: sys.exit("waited for the template")
        time.sleep(0.2)
    # The first start loads the template into memory.
    timed()
    seen["template"] = [timed() for _ in range(runs)]
finally:
    config.write_text(before)
    run("systemctl", "restart", "banger-system")
print(json.dumps(seen))
