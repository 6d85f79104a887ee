#!/usr/bin/python3
# An agent at work: it creates a sandbox, edits and tests a repository in it, and brings the work back.

import os
import shutil
import time
from __main__ import Client, subprocess


def shell(line, cwd=None):
    return subprocess.run(["sh", "-ec", line], cwd=cwd, check=True, capture_output=True, text=True).stdout


shutil.rmtree("agents", ignore_errors=True)
os.mkdir("agents")
shell("git init -q -b main; echo one > file; git add file; git -c user.name=a -c user.email=a@b commit -qm first", "agents")
client = Client("--only-label", "agent", "--max", "2", cwd="agents")
made = client.call("create", name="work", vcpus=1, ephemeral=True)
print("state", made["state"], made["labels"])

client.call("write_file", sandbox="work", path="/root/add.sh", content="echo $(($1 + $2))\n", executable=True)
print("sum", client.call("exec", sandbox="work", command="sh /root/add.sh 2 3")["stdout"].strip())
print("read", client.call("read_file", sandbox="work", path="~/add.sh")["content"].strip())
names = [entry["name"] for entry in client.call("list_files", sandbox="work", path="/root")["entries"]]
print("listed", "add.sh" in names)

slow = client.call("exec", sandbox="work", command="echo begun; sleep 1000", timeout_seconds=20)
print("limit", slow["timed_out"], slow["stdout"].strip())
much = client.call("exec", sandbox="work", command="yes | head -c 5000000", max_output_bytes=1000)
print("bound", much["stdout_bytes"], much["truncated"], len(much["stdout"]) < 1100)

cancelled = client.begin("exec", sandbox="work", command="touch /tmp/begun; exec sleep 2000")
client.call("exec", sandbox="work", command="until [ -e /tmp/begun ]; do sleep 0.1; done")
client.send(method="notifications/cancelled", params={"requestId": cancelled})
# The agent gives what it hangs up some seconds to end.
running = "cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' ' ' | grep -q 'sleep [12]000'"
left = f"for i in $(seq 300); do {running} || exit 0; sleep 0.1; done; exit 1"
print("nothing runs", client.call("exec", sandbox="work", command=left, timeout_seconds=300)["exit_code"])

print("sent", client.call("prepare", sandbox="work")["files"])
client.call("exec", sandbox="work", command="echo two >> file; git add -A; git -c user.name=c -c user.email=c@d commit -qm second")
diff = client.call("diff", sandbox="work")
print("diff", diff["files"], "+two" in diff["patch"])
print("applied", client.call("apply", sandbox="work")["count"], shell("cat agents/file").split())
client.call("download", sandbox="work", **{"from": "/root/add.sh"}, to="copied.sh")
print("downloaded", shell("cat agents/copied.sh").strip())

print("wrong", client.fail("exec", sandbox="work", command=["/nonexistent"]), client.fail("exec", sandbox="work"))
print("outside", client.fail("upload", sandbox="work", **{"from": "/etc/passwd"}, to="/root/x"))
print("absent", client.fail("show", sandbox="nothing"))
print("run", client.call("run", command="uname -s; exit 4", vcpus=1)["exit_code"])
print("background", client.call("exec", sandbox="work", command="echo out; sleep 600", background=True)["background_id"])
deadline = time.monotonic() + 180
while "out" not in client.call("logs", sandbox="work", background_id=1)["text"]:
    assert time.monotonic() < deadline, "the command writes nothing"
print("stopped", client.call("stop", sandbox="work")["state"])
print("deleted", client.call("delete", sandbox="work"))

# What an agent leaves ends with its server, even if that is killed.
client.call("create", name="left", vcpus=1, ephemeral=True)
client.server.kill()
client.server.wait()
deadline = time.monotonic() + 180
while shell("banger list -q"):
    assert time.monotonic() < deadline, "the sandbox is still there"
    time.sleep(0.2)
print("nothing left")
