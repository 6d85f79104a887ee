#!/usr/bin/python3
# Runs a command in the guest, by MCP and by the command line.

from __main__ import Client, runs, seen, time, timed

client = Client()
client.call("exec", sandbox="bench", command=["true"])
for turn in range(runs):
    begin = time.perf_counter()
    client.call("exec", sandbox="bench", command=["true"])
    seen.setdefault("mcp", []).append((time.perf_counter() - begin) * 1000)
    timed("exec", ["banger", "vm", "exec", "bench", "--", "true"])
client.end()
