"""Both clients with the real command. Arguments: ``agent`` for a service whose sandboxes with names like ``box`` have the
real agent, on this host, or ``service`` for the real service, whose sandboxes are in memory and have no agent; and a
directory to which both can write."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import banger
from banger import AsyncBanger, Banger, Sandbox


def fails(kind: type[banger.BangerError], act: object, *arguments: object, **options: object) -> banger.BangerError:
    assert callable(act)
    try:
        act(*arguments, **options)
    except banger.BangerError as error:
        assert type(error) is kind, repr(error)
        return error
    raise AssertionError(f"{act} did not fail")


def with_agent(guest: Path) -> None:
    client = Banger()
    assert {box.name for box in client.list()} == {"web", "db", "locked"}
    with client.create(name="box", image="debian", labels={"team": "x y"}) as box:
        assert box.properties["labels"] == {"team": "x y"}, box.properties
        # What the command prints about each sandbox of this service has these keys.
        assert Sandbox.get("box").id == box.id and [one.name for one in Sandbox.list(labels={"team": "x y"})] == ["box"]
        commands(box, guest)
        files(box, guest)
        error = fails(banger.NoSuchImageError, client.create, image="nope", pull="never")
        assert error.code == "dev.banger.Error.NoSuchImage" and error.remedy is not None
        fails(banger.InteractiveAuthorizationRequiredError, client.get("locked").stop)
        fails(banger.InvalidArgumentsError, client.create, vcpus=0)
        assert box.ports.published() == []
        assert all(port["port"] for port in box.ports.list())
        assert all(command["id"] > 0 for command in box.commands())
        box.egress.allow("example.com", "packages")
        box.egress.deny("example.com")
        assert box.stop()["done"] == "stopped" and box.show()["state"] == "stopped"
        assert box.start()["changed"]
        assert "Started" in box.logs(tail=1)
    fails(banger.NoSuchVMError, client.get, "box")
    box.delete()


def commands(box: Sandbox, guest: Path) -> None:
    result = box.exec("sh", "-c", 'echo "$1"; echo err >&2; exit 7', "sh", "a  b")
    assert (result.exit_status, result.stdout, result.stderr) == (7, "a  b\n", "err\n"), result
    assert box.exec("cat", input="hello").stdout == "hello"
    assert box.exec("sh", "-c", "kill -9 $$").exit_status == 137
    assert box.exec("sh", "-c", "exit 125").exit_status == 125
    variables = {"BANGER_ONE": " a=b 'c' ", "BANGER_TWO": "two\nlines\r\n", "BANGER_THREE": ""}
    printed = box.exec("sh", "-c", 'printf "[%s][%s][%s]" "$BANGER_ONE" "$BANGER_TWO" "$BANGER_THREE"', env=variables)
    assert printed.stdout == "[ a=b 'c' ][two\nlines\r\n][]", printed.stdout
    assert box.exec("pwd", workdir=str(guest)).stdout == f"{guest}\n"
    fails(banger.GuestNotFoundError, box.exec, "/nonexistent")
    fails(banger.GuestNoDirectoryError, box.exec, "true", workdir="/nonexistent")
    fails(banger.CommandFailedError, box.exec, "false", check=True)
    # The command gets the signal, and may clean up.
    mark = guest / "mark"
    script = f"trap 'echo bye; echo gone > {mark}; exit 0' TERM; echo begun; while :; do sleep 0.05; done"
    with box.stream("sh", "-c", script) as output:
        assert next(iter(output)).text == "begun\n"
    assert mark.read_text() == "gone\n"
    fails(banger.TimeLimitError, box.exec, "sleep", "1000", time_limit=1)
    with box.stream("sh", "-c", "echo one; sleep 0.2; echo two >&2; exit 3") as output:
        seen = [(chunk.stream, chunk.text) for chunk in output]
        assert (seen, output.exit_status) == ([("stdout", "one\n"), ("stderr", "two\n")], 3), seen
    with box.stream("yes") as output:
        first = next(iter(output)).data[:2]
        assert first == b"y\n"
    number = box.exec_detached("sh", "-c", "echo $BANGER_ONE", env={"BANGER_ONE": "1"})
    assert number > 0


def files(box: Sandbox, guest: Path) -> None:
    place = guest / "a b"
    box.files.write(f"{place}/new/x", b"\0\xff" * 1000, mode=0o750)
    assert box.files.read(f"{place}/new/x") == b"\0\xff" * 1000
    assert os.stat(place / "new/x").st_mode & 0o7777 == 0o750
    box.files.write(f"{place}/empty", "")
    assert box.files.read_text(f"{place}/empty") == ""
    long = "n" * 200
    box.files.write(f"{place}/{long}", "long")
    (place / "link").symlink_to(long)
    assert box.files.read_text(f"{place}/link") == "long"
    with open(place / "holes", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"middle")
    holes = box.files.read(f"{place}/holes")
    assert len(holes) == 1 << 20 and holes.strip(b"\0") == b"middle"
    fails(banger.OutputTooLargeError, box.files.read, f"{place}/holes", max_bytes=1000)
    fails(banger.GuestNotFoundError, box.files.read, f"{place}/none")
    fails(banger.NotAFileError, box.files.read, str(place))
    fails(banger.GuestNotFoundError, box.files.list, f"{place}/none")
    fails(banger.InvalidArgumentsError, box.files.list, "relative")
    listed = {entry["name"]: (entry["kind"], entry["size"]) for entry in box.files.list(str(place))}
    expect = {"new": "directory", "empty": "file", long: "file", "link": "symlink", "holes": "file"}
    assert {name: kind for name, (kind, _) in listed.items()} == expect, listed
    assert listed[long][1] == 4
    assert "new/x" in [entry["name"] for entry in box.files.list(str(place), recursive=True)]
    host = guest / "host"
    host.mkdir()
    (host / "y").write_text("up")
    box.files.upload(host, f"{place}/uploaded")
    assert box.files.read_text(f"{place}/uploaded/y") == "up"
    box.files.download(f"{place}/uploaded/.", host / "down")
    assert (host / "down/y").read_text() == "up"


async def with_agent_async() -> None:
    client = AsyncBanger()
    async with await client.create(name="box-async", image="debian") as box:
        results = await asyncio.gather(*(box.exec("cat", input=str(number)) for number in range(8)))
        assert [result.stdout for result in results] == [str(number) for number in range(8)]
        async with box.stream("sh", "-c", "echo one; exit 3") as output:
            assert [chunk.text async for chunk in output] == ["one\n"] and output.exit_status == 3
        # A cancelled command has ended when the cancellation arrives.
        waiting = asyncio.ensure_future(box.exec("sh", "-c", "echo $$; exec sleep 1000"))
        async with box.stream("sh", "-c", "echo $$; exec sleep 1000") as output:
            async for chunk in output:
                process = Path("/proc") / chunk.text.strip()
                break
            assert process.exists()
        waiting.cancel()
        try:
            await waiting
            raise AssertionError("it was not cancelled")
        except asyncio.CancelledError:
            pass
        for _ in range(1200):
            if not process.exists():
                break
            await asyncio.sleep(0.1)
        assert not process.exists(), process
        # The service cancels the job of a creation that is cancelled.
        creation = asyncio.ensure_future(client.create(name="hanging", image="debian"))
        while "hanging" not in [one.name for one in await client.list()]:
            await asyncio.sleep(0.05)
        creation.cancel()
        try:
            await creation
            raise AssertionError("it was not cancelled")
        except asyncio.CancelledError:
            pass
        assert "hanging" not in [one.name for one in await client.list()]
    assert "box-async" not in [one.name for one in await client.list()]


def with_service() -> None:
    client = Banger()
    version = client.version()
    assert version["client"] == banger.__version__ and version["service"] == version["client"], version
    assert client.doctor()
    assert [image["name"] for image in client.images()] == ["debian-bookworm"]
    assert client.pull_image("registry.test/library/alpine:3")["name"] == "alpine-3"
    with client.create(name="web", memory=512 << 20, disk_size="1GiB", egress=["example.com"], publish=["8080:80"]) as web:
        assert (web.properties["memory"], web.properties["disk_size"]) == (512 << 20, 1 << 30)
        assert web.egress.show()["egress"] == ["example.com"]
        web.egress.allow("github.com:443")
        web.egress.deny("example.com")
        assert web.egress.show()["egress"] == ["github.com:443"]
        assert [port["guest_port"] for port in web.ports.publish(81)] == [81]
        assert sorted(port["guest_port"] for port in web.ports.published()) == [80, 81]
        web.ports.unpublish(8080)
        assert [port["guest_port"] for port in web.ports.published()] == [81]
        assert web.pause()["done"] == "paused" and web.unpause()["changed"]
        assert web.suspend()["done"] == "suspended" and web.show()["state"] == "suspended"
        fails(banger.InvalidStateError, web.pause)
        assert web.resume()["done"] == "resumed" and web.show()["state"] == "running"
        assert web.restart()["changed"]
        assert web.snapshot("clean")["name"] == "clean"
        fails(banger.NameTakenError, web.snapshot, "clean")
        assert [snapshot["sandbox"] for snapshot in web.snapshots()] == ["web"]
        forks = web.fork(count=2, from_snapshot="clean")
        assert [fork.name for fork in forks] == ["web-1", "web-2"], forks
        follow(client, web)
        for fork in forks:
            fork.delete()
        web.delete_snapshot("clean")
        fails(banger.NoSuchSnapshotError, web.delete_snapshot, "clean")
        # A sandbox in memory has no agent.
        error = fails(banger.AgentUnavailableError, web.exec, "true")
        assert error.message == "guests in memory have no agent.", error
    assert client.list() == []


def follow(client: Banger, web: Sandbox) -> None:
    is_seen = threading.Event()

    def change() -> None:
        # The first signal may be missed before the subscription is active.
        while not is_seen.is_set():
            web.pause()
            web.unpause()

    changes = threading.Thread(target=change)
    changes.start()
    with client.events() as events:
        event = next(iter(events))
        is_seen.set()
        assert event["interface"] and event["path"].startswith("/"), event
    web.rename("site")
    assert web.name == web.show()["name"] == "site"
    changes.join()


def main() -> None:
    if sys.argv[1] == "agent":
        with_agent(Path(sys.argv[2]))
        asyncio.run(with_agent_async())
    else:
        with_service()
    print("ok")


if __name__ == "__main__":
    main()
