#!/usr/bin/python3
# A program that works in sandboxes with the SDK.

import asyncio
import os
import stat
import sys

package = sys.argv[1]
sys.path.insert(0, package)
sys.dont_write_bytecode = True

from banger import AsyncSandbox, BangerError, Sandbox, TimeLimitError  # noqa: E402

with Sandbox.create(vcpus=1, labels={"made": "by sdk"}, publish=[8000]) as work:
    print("created", work.properties["state"])
    done = work.exec("sh", "-c", "echo out; echo err >&2; exit 3")
    print("command", done.exit_status, done.stdout.strip(), done.stderr.strip())
    print("input", work.exec("cat", input="hello").stdout)
    try:
        work.exec("sh", "-c", "echo begun; exec sleep 1000", time_limit=20)
    except TimeLimitError as error:
        print("limit", error.result.stdout.strip())
    with work.stream("sh", "-c", "echo one; sleep 1; echo two") as output:
        print("stream", *"".join(chunk.text for chunk in output).split(), output.exit_status)
    work.files.write("/root/new/run", "#!/bin/sh\n", mode=0o755)
    entry = work.files.list("/root/new")[0]
    print("file", work.files.read_text("new/run").strip(), entry["mode"])
    with open("upload", "w") as file:
        file.write("up")
    work.files.upload("upload", "/root/")
    work.files.download("/root/upload", "download")
    with open("download") as file:
        print("copied", file.read())
    assert stat.S_ISREG(os.stat("download").st_mode)
    try:
        work.exec("/nonexistent")
    except BangerError as error:
        print("failed", error.code)
    print("published", [port["guest_port"] for port in work.ports.published()] == [8000])
    print(work.suspend()["done"], work.resume()["done"])
    (fork,) = work.fork()
    with fork:
        print("fork kept", fork.files.read_text("upload") == "up" and fork.id != work.id)
try:
    work.show()
except BangerError as error:
    print("gone", error.code)


async def cancelled():
    task = asyncio.ensure_future(AsyncSandbox.create(vcpus=1, name="cancelled"))
    while not any(one.name == "cancelled" for one in await AsyncSandbox.list()):
        await asyncio.sleep(0.1)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        # The service deletes it by itself.
        while await AsyncSandbox.list():
            await asyncio.sleep(0.1)
        print("cancelled, nothing left")


asyncio.run(cancelled())
