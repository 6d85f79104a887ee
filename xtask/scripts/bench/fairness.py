#!/usr/bin/python3
# Measures what bob waits for, alone and right after alice has asked for as much as she can, in turns.

import json, os, pwd, subprocess, sys, tempfile, time

runs = int(sys.argv[1])
hers = sys.argv[2]
his = sys.argv[3]
image = sys.argv[4]
seen = {"list alone": [], "list crowded": [], "start alone": [], "start crowded": []}

# Reads nothing that the service sends but the replies. Prints a line once every request has been answered, and holds
# what it was given until its input ends.
FLOOD = """
import os, sys, tempfile
from gi.repository import Gio, GLib
bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
def call(path, interface, member, signature, *arguments, fds=None):
    try:
        return bus.call_with_unix_fd_list_sync("dev.banger.Manager1", path, interface, member,
            GLib.Variant(signature, arguments), None, Gio.DBusCallFlags.NONE, 60000, fds, None)
    except GLib.Error:
        return None
def find(member, name):
    return call("/dev/banger/Manager1", "dev.banger.Manager1", member, "(s)", name)[0].unpack()[0]
vm, image = find("GetVM", sys.argv[1]), find("GetImage", sys.argv[2])
held = [call(vm, "dev.banger.Manager1.VM", "OpenLog", "(sa{sv})", "console", {"follow": GLib.Variant("b", True)}) for _ in range(560)]
jobs = [call(vm, "dev.banger.Manager1.VM", "Stop", "(a{sv})", {}) for _ in range(600)]
for _ in range(120):
    with tempfile.TemporaryFile() as file:
        fds = Gio.UnixFDList.new_from_array([os.dup(file.fileno())])
        jobs.append(call(image, "dev.banger.Manager1.Image", "Export", "(ha{sv})", 0, {}, fds=fds))
print(len([one for one in held if one]), len([one for one in jobs if one]), flush=True)
sys.stdin.read()
"""

def words_of(user):
    return ["runuser", "-u", user, "--"]

def run(*words, user="bob"):
    done = subprocess.run([*words_of(user), *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"{words} failed: {done.stderr}")
    return done.stdout

def state():
    return json.loads(run("banger", "vm", "show", "--json", his))

def host_parts():
    # All of them: what others ask for is logged, too, and many lines of it.
    journal = ["journalctl", "-u", "banger-system", "-o", "json", "--output-fields=BANGER_HOST_US", f"BANGER_VM={vm}"]
    lines = map(json.loads, subprocess.run(journal, check=True, capture_output=True, text=True).stdout.splitlines())
    return [int(line["BANGER_HOST_US"]) / 1000 for line in lines if "BANGER_HOST_US" in line]

def states_of_jobs(user):
    listed = run("busctl", "--system", "--json=short", "call", "dev.banger.Manager1", "/dev/banger/Manager1",
        "dev.banger.Manager1", "ListJobs", "a{sv}", "0", user=user)
    return [row[3] for row in json.loads(listed)["data"][0]]

def measure(how):
    for _ in range(5):
        begin = time.perf_counter()
        run("banger", "vm", "list", "--quiet")
        seen[f"list {how}"].append((time.perf_counter() - begin) * 1000)
    before = len(host_parts())
    start = subprocess.Popen([*words_of("bob"), "banger", "vm", "start", his], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(host_parts()) == before:
        if time.monotonic() > deadline: sys.exit("the sandbox does not start")
        time.sleep(0.2)
    seen[f"start {how}"].append(host_parts()[-1])
    start.terminate(); start.wait()
    # The interrupted client may have stopped the sandbox already.
    subprocess.run([*words_of("bob"), "banger", "vm", "kill", his], capture_output=True, stdin=subprocess.DEVNULL)
    while state()["state"] != "stopped": time.sleep(0.1)

vm = state()["id"]
for turn in range(runs):
    measure("alone")
    alice = pwd.getpwnam("alice")
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, alice.pw_uid, alice.pw_gid)
        flood = subprocess.Popen([*words_of("alice"), "env", f"TMPDIR={home}", "/usr/bin/python3", "-c", FLOOD, hers, image],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        granted = flood.stdout.readline().split()
        if len(granted) != 2 or "0" in granted:
            sys.exit(f"the flood asked for nothing: {granted}")
        measure("crowded")
        flood.stdin.close(); flood.wait()
        # What is left of her exports must not run into the next turn.
        deadline = time.monotonic() + 300
        while any(state in ("queued", "running") for state in states_of_jobs("alice")):
            if time.monotonic() > deadline: sys.exit("the exports do not end")
            time.sleep(0.5)
print(json.dumps(seen))
