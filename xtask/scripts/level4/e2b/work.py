#!/usr/bin/python3
# A program that is written with E2B's SDK, against banger-e2b.

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time

modules = sys.argv[1]
sys.path.insert(0, modules)
sys.dont_write_bytecode = True

directory = tempfile.mkdtemp()
os.environ.update(XDG_RUNTIME_DIR=directory, XDG_STATE_HOME=directory)
server = subprocess.Popen(["banger-e2b", "serve"], stdin=subprocess.DEVNULL)

try:
    deadline = time.monotonic() + 180
    while True:
        printed = subprocess.run(["banger-e2b", "env"], capture_output=True, text=True)
        if printed.returncode == 0:
            break
        assert time.monotonic() < deadline, printed.stderr
        time.sleep(0.2)
    for word in shlex.split(printed.stdout):
        name, equals, value = word.partition("=")
        if equals:
            os.environ[name] = value

    from e2b import CommandExitException, Sandbox, SandboxNotRunningException, SandboxQuery

    patient = {"request_timeout": 900}
    box = Sandbox.create(timeout=3600, metadata={"made": "by e2b"}, envs={"A": "1", "B": "0"}, **patient)
    info = box.get_info(**patient)
    print("created", info.state.value, info.template_id)
    done = box.commands.run("echo $A$B; echo err >&2", envs={"B": "2"}, timeout=0)
    print("command", done.stdout.strip(), done.stderr.strip())
    try:
        box.commands.run("exit 3", timeout=0)
    except CommandExitException as error:
        print("status", error.exit_code)
    lines = []
    box.commands.run("echo one; sleep 1; echo two", on_stdout=lines.append, timeout=0)
    print("stream", *"".join(lines).split())
    cat = box.commands.run("cat", background=True, stdin=True, timeout=0)
    assert [process.pid for process in box.commands.list(**patient)] == [cat.pid]
    cat.send_stdin("hello\n", **patient)
    cat.close_stdin(**patient)
    print("input", cat.wait().stdout.strip())
    sleeping = box.commands.run("exec sleep 12345", background=True, timeout=0)
    print("killed", sleeping.kill())
    deadline = time.monotonic() + 180
    while box.commands.run("ps ax | grep '[s]leep 12345' || :", timeout=0).stdout:
        assert time.monotonic() < deadline, "the command goes on in the guest"
    print("user", box.commands.run("id -un", user="nobody", timeout=0).stdout.strip())
    print("directory", box.commands.run("pwd", cwd="/tmp", timeout=0).stdout.strip())

    files = box.files
    path = files.write("/root/e2b/sub/file", "hello", **patient).path
    print("file", files.read(path, **patient), files.get_info(path, **patient).size == 5)
    print("list", files.list("/root/e2b", **patient)[0].name, files.make_dir("/root/e2b/new", **patient))
    files.rename(path, "/root/e2b/new/file", **patient)
    print("renamed", files.exists("/root/e2b/new/file", **patient), files.exists(path, **patient))
    files.remove("/root/e2b/sub", **patient)
    found = Sandbox.list(query=SandboxQuery(metadata={"made": "by e2b"}), **patient).next_items()
    print("listed", [entry.sandbox_id for entry in found] == [box.sandbox_id])

    boot = box.commands.run("cat /proc/sys/kernel/random/boot_id", timeout=0).stdout
    print("paused", box.pause(**patient))
    try:
        box.commands.run("true", timeout=0)
    except SandboxNotRunningException as error:
        print("refused", type(error).__name__)
    same = Sandbox.connect(box.sandbox_id, timeout=3600, **patient)
    print("resumed", same.commands.run("cat /proc/sys/kernel/random/boot_id", timeout=0).stdout == boot)
    print("still", same.get_info(**patient).state.value)
    print("gone", same.kill(**patient), same.kill(**patient))

    short = Sandbox.create(timeout=1, **patient)
    deadline = time.monotonic() + 180
    everything = ["banger", "vm", "list", "--json"]
    while short.sandbox_id in subprocess.run(everything, capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < deadline, "a sandbox outlives its time"
        time.sleep(0.5)
    print("in time")
    left = subprocess.run(["banger", "vm", "list", "--json", "--filter=label=e2b.end"], capture_output=True, check=True)
    print("nothing left" if json.loads(left.stdout) == [] else left.stdout)
finally:
    server.terminate()
    server.wait()
