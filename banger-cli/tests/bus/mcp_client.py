# Uses the tools of `banger mcp` with the official client, which checks results against the schemas of the tools.
# Arguments: the program banger, and a directory that the sandbox `box` can write to.

import asyncio
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

banger, guest = sys.argv[1:]


async def expect_error(session, tool, arguments, code):
    result = await session.call_tool(tool, arguments)
    assert result.is_error and result.structured_content["code"] == code, result


async def work(session):
    hello = await session.initialize()
    assert hello.server_info.name == "banger" and hello.instructions, hello
    tools = {tool.name: tool for tool in (await session.list_tools()).tools}
    assert tools["read_file"].annotations.read_only_hint and tools["delete"].annotations.destructive_hint

    async def done(tool, **arguments):
        result = await session.call_tool(tool, arguments)
        assert not result.is_error, result
        return result.structured_content

    await done("write_file", sandbox="box", path=f"{guest}/x", content="hello\n")
    assert (await done("read_file", sandbox="box", path=f"{guest}/x"))["content"] == "hello\n"
    seen = []

    async def progress(_done, _total, message):
        seen.append(message)

    command = {"sandbox": "box", "command": f"cat {guest}/x; sleep 0.5; exit 3"}
    ran = await session.call_tool("exec", command, progress_callback=progress)
    assert ran.structured_content["exit_code"] == 3 and "".join(seen) == "hello\n", (ran, seen)
    slow = await done("exec", sandbox="box", command="sleep 100", timeout_seconds=1)
    assert slow["timed_out"] and "exit_code" not in slow, slow
    assert (await done("list_files", sandbox="box", path=guest))["entries"][0]["name"] == "x"
    assert (await done("show", sandbox="box"))["name"] == "box"
    assert [row["name"] for row in (await done("list"))["sandboxes"]] == ["web", "db", "locked", "box"]
    await done("logs", sandbox="box")
    assert (await done("ports", sandbox="box"))["published"] == []
    made = await done("create", name="made", image="debian", ephemeral=True, labels={"a": "b"})
    assert made["name"] == "made" and made["labels"] == {"a": "b"}, made
    assert (await done("stop", sandbox="made"))["state"] == "stopped"
    assert (await done("start", sandbox="made"))["state"] == "running"
    assert (await done("delete", sandbox="made", force=True)) == {"deleted": "made"}
    await expect_error(session, "show", {"sandbox": "made"}, "dev.banger.Error.NoSuchVM")
    await expect_error(session, "show", {}, "invalid-arguments")
    many = [done("exec", sandbox="web", command=f"echo {number}") for number in range(20)]
    assert [row["stdout"] for row in await asyncio.gather(*many)] == [f"{number}\n" for number in range(20)]


async def main():
    server = StdioServerParameters(command=banger, args=["mcp"], env=dict(os.environ))
    async with stdio_client(server) as (reader, writer), ClientSession(reader, writer) as session:
        await work(session)
    print("ok")


asyncio.run(main())
