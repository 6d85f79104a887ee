#!/usr/bin/python3
# Runs a command in new sandboxes that boot, and in new ones that start from a kernel template. Then suspends, resumes and
# forks a sandbox, in turns with the same by hand.

import json, pathlib, shutil, subprocess, sys, time
from __main__ import TAP, ByHand, Heartbeats, open_file, process_of, pss_kib, tap_of

runs = int(sys.argv[1])
children = int(sys.argv[2])
hello = bytes.fromhex(sys.argv[3])
request = bytes.fromhex(sys.argv[4])
config = pathlib.Path("/etc/banger/config.toml")
before = config.read_text() if config.exists() else ""
SIZES = ["--vcpu", "1", "--memory", "512M"]
NAME = "bench-instant"
CHILDREN = [f"{NAME}-{number + 1}" for number in range(children)]
seen = {}

# What tells a guest that stands still from one that runs, by the clock of the host: the guest's own may stand still, too.
HEARTBEAT = r"""
use Socket;
open ROUTES, "/proc/net/route";
while (<ROUTES>) { @f = split; $gateway = pack "V", hex $f[2] if $f[1] eq "00000000" }
open PID, ">/run/heartbeat"; print PID $$; close PID;
socket S, PF_INET, SOCK_DGRAM, 0;
while (1) { send S, ".", 0, sockaddr_in(9, $gateway); select undef, undef, undef, 0.005 }
"""


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{' '.join(words[:4])}: {done.stderr}")
    return done.stdout


def vm(verb, *words):
    return run("banger", "vm", verb, "--quiet", *words)


def milliseconds(act):
    begin = time.perf_counter()
    act()
    return (time.perf_counter() - begin) * 1000


def note(key, figure):
    seen.setdefault(key, []).append(figure)


def run_once():
    vm("run", "--rm", *SIZES, "--", "true")


def delete():
    names = [NAME, *CHILDREN]
    subprocess.run(["banger", "vm", "delete", "--force", *names], capture_output=True, stdin=subprocess.DEVNULL)


def has_template():
    done = subprocess.run(["banger", "doctor"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return "templates: 1 template takes" in done.stdout


def allow_templates(size):
    run("systemctl", "stop", "banger-system")
    shutil.rmtree("/var/lib/banger/templates", ignore_errors=True)
    config.write_text(f'{before}\n[templates]\ndisk = "{size}"\n')
    run("systemctl", "start", "banger-system")


def measure_starts():
    allow_templates("0")
    # The first of each kind reads its files from the disk.
    vm("create", *SIZES, "--name", NAME)
    note("cold_pss", pss_kib(process_of(NAME)[0]))
    delete()
    for _ in range(runs):
        note("cold", milliseconds(run_once))
    allow_templates("2GiB")
    run_once()
    end = time.monotonic() + 240
    while not has_template():
        if time.monotonic() > end:
            sys.exit("waited for the template")
        time.sleep(0.2)
    run_once()
    for _ in range(runs):
        note("template", milliseconds(run_once))


def measure_memory():
    vm("create", *SIZES, "--name", NAME)
    run("banger", "vm", "exec", "-d", NAME, "--", "perl", "-e", HEARTBEAT)
    measure_resume()
    measure_by_hand()
    measure_fork()
    measure_snapshot()
    delete()


def measure_resume():
    vm("suspend", NAME)

    def resume():
        vm("resume", NAME)
        run("banger", "vm", "exec", NAME, "--", "echo", "first")

    note("resume", milliseconds(resume))


def measure_by_hand():
    process, words = process_of(NAME)
    modules = open_file(process, "modules.ext4")
    sandbox = json.loads(run("banger", "vm", "show", "--json", NAME))["id"]
    vm("suspend", NAME)
    with ByHand(sandbox, words, modules) as peer:
        note("peer_resume", milliseconds(lambda: peer.load(hello, request, b"first")))
        note("peer_pause", Heartbeats(TAP).largest_gap(peer.capture))
    vm("resume", NAME)


def measure_fork():
    heartbeats, times = Heartbeats(tap_of(process_of(NAME)[0])), []

    def fork():
        times.append(milliseconds(lambda: vm("fork", "--no-start", "-n", str(children), NAME)))

    def start():
        vm("start", *CHILDREN)
        words = [["banger", "vm", "exec", child, "--", "true"] for child in CHILDREN]
        answers = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in words]
        if any([answer.wait() for answer in answers]):
            sys.exit("a child does not answer")

    note("pause", heartbeats.largest_gap(fork))
    times.append(milliseconds(start))
    note("children", sum(times) / children)
    # An idle child has no heartbeat.
    run("banger", "vm", "exec", CHILDREN[0], "--", "sh", "-c", "kill $(cat /run/heartbeat)")
    note("pss", pss_kib(process_of(CHILDREN[0])[0]))


def measure_snapshot():
    # The guests of the other starts have no heartbeat.
    run("banger", "vm", "exec", NAME, "--", "sh", "-c", "kill $(cat /run/heartbeat)")
    run("banger", "vm", "snapshot", "create", "--quiet", NAME, "booted")
    # They would take processor time from a guest that runs alone in the other measurements.
    vm("delete", "--force", *CHILDREN)
    vm("stop", "--force", NAME)
    of_it = ["--from-snapshot", f"{NAME}/booted"]
    note("snapshot", milliseconds(lambda: vm("run", "--rm", *of_it, "--", "true")))


try:
    delete()
    measure_starts()
    for _ in range(runs):
        measure_memory()
finally:
    delete()
    config.write_text(before)
    run("systemctl", "restart", "banger-system")
print(json.dumps(seen))
