#!/usr/bin/python3
# The beginning of each script that is a client of `banger mcp`.

import json
import subprocess


class Client:
    def __init__(self, *options, cwd=None):
        pipe = subprocess.PIPE
        words = ["banger", "mcp", *options]
        self.server = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, cwd=cwd)
        self.last = 0
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        self.reply(self.request("initialize", hello))
        self.send(method="notifications/initialized")

    def send(self, **message):
        self.server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.server.stdin.flush()

    def request(self, method, params):
        self.last += 1
        self.send(id=self.last, method=method, params=params)
        return self.last

    def begin(self, tool, **arguments):
        return self.request("tools/call", {"name": tool, "arguments": arguments})

    def reply(self, number):
        for line in self.server.stdout:
            message = json.loads(line)
            if message.get("id") == number:
                return message
        raise EOFError("the server has ended")

    def call(self, tool, **arguments):
        result = self.reply(self.begin(tool, **arguments))["result"]
        assert not result["isError"], result
        return result["structuredContent"]

    def fail(self, tool, **arguments):
        result = self.reply(self.begin(tool, **arguments))["result"]
        assert result["isError"], result
        return result["structuredContent"]["code"]

    def end(self):
        self.server.stdin.close()
        return self.server.wait(timeout=180)
