#!/usr/bin/python3
# Runs a command in new sandboxes that boot, and then in new sandboxes that start from a kernel template.

import json, pathlib, shutil, subprocess, sys, time
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
def allow_templates(size):
    run("systemctl", "stop", "banger-system")
    shutil.rmtree("/var/lib/banger/templates", ignore_errors=True)
    config.write_text(f'{before}\n[templates]\ndisk = "{size}"\n')
    run("systemctl", "start", "banger-system")
seen = {}
try:
    allow_templates("0")
    timed()
    seen["cold"] = [timed() for _ in range(runs)]
    allow_templates("2GiB")
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
