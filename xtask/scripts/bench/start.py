#!/usr/bin/python3
# Starts a sandbox and an empty unit in turns. Reads our times from the service's journal, so that they do not include the
# client's.

import json, os, subprocess, sys, time
runs = int(sys.argv[1])
name = sys.argv[2]
seen = {"ours": [], "peers": []}
def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
def machine():
    return json.loads(run("banger", "vm", "show", "--json", name))
def journal():
    lines = run("journalctl", "-u", "banger-system", "-o", "json", "--output-fields=BANGER_HOST_US", f"BANGER_VM={vm}").splitlines()
    return [int(line["BANGER_HOST_US"]) / 1000 for line in map(json.loads, lines) if "BANGER_HOST_US" in line]
vm = machine()["id"]
jail = ["DynamicUser=yes", "CapabilityBoundingSet=", "NoNewPrivileges=yes", "RootDirectory=/run/banger/empty", "MountAPIVFS=yes",
    "DevicePolicy=closed", "PrivateDevices=yes", "PrivateNetwork=yes", "PrivateIPC=yes", "PrivateTmp=yes", "ProtectProc=invisible",
    "ProcSubset=pid", "ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectKernelLogs=yes", "ProtectControlGroups=yes",
    "ProtectClock=yes", "ProtectHostname=yes", "RestrictAddressFamilies=AF_UNIX", "RestrictNamespaces=yes", "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes", "LockPersonality=yes", "SystemCallArchitectures=native", "SystemCallFilter=@system-service seccomp",
    "SystemCallErrorNumber=EPERM", "MemoryMax=1G", "TasksMax=128"]
jail += [f"BindReadOnlyPaths={path}" for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]
os.makedirs("/run/banger/empty", exist_ok=True)
for turn in range(runs):
    before = len(journal())
    # Nothing else runs during the measurement: the previous turn has ended, and nothing polls meanwhile.
    time.sleep(0.5)
    # The boot of the guest is not measured, so do not wait for it.
    start = subprocess.Popen(["banger", "vm", "start", name], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    while len(journal()) == before: time.sleep(0.2)
    start.terminate(); start.wait()
    # The interrupted client may have stopped the sandbox already.
    subprocess.run(["banger", "vm", "kill", name], capture_output=True, stdin=subprocess.DEVNULL)
    while machine()["state"] != "stopped": time.sleep(0.05)
    seen["ours"].append(journal()[-1])
    time.sleep(0.5)
    begin = time.perf_counter()
    run("systemd-run", "--quiet", "--property=Type=exec", *[f"--property={one}" for one in jail], "/usr/bin/true")
    seen["peers"].append((time.perf_counter() - begin) * 1000)
print(json.dumps(seen))
