#!/usr/bin/python3 -IS
# Stands in for the command `banger` in the tests of the SDKs. It writes down how it was called, and does what a plan says.
#
# STAND_IN is a directory. `plan.json` there is a list of objects; the first whose `when` are the first words of the
# arguments counts. Its keys: stdout, stderr (texts), errors (lines for the file of errors), status, cat (standard input to
# standard output), pieces (this many single bytes to standard output), much (this many bytes there), signals (wait for this
# many signals first). Each call adds a line to `calls.jsonl`, and each signal one to `signals`; `input-ended` is there once
# `cat` has read all.

import json
import os
import signal
import sys
import time

directory = os.environ["STAND_IN"]
arguments = sys.argv[1:]
error_file = None
if arguments[:1] == ["--error-file"]:
    error_file, arguments = arguments[1], arguments[2:]

call = {"arguments": arguments, "error_file": error_file, "pid": os.getpid()}
for word in arguments:
    if word.startswith("--env-file="):
        with open(word.split("=", 1)[1], newline="") as file:
            call["variables"] = file.read()
call["environment"] = dict(os.environ)


def note(name, line):
    with open(os.path.join(directory, name), "a") as file:
        file.write(line + "\n")


note("calls.jsonl", json.dumps(call))
with open(os.path.join(directory, "plan.json")) as file:
    plan = json.load(file)
plan.append({"when": ["version"], "stdout": '{"client": "99.0.0", "service": null}'})
step = next((step for step in plan if arguments[: len(step["when"])] == step["when"]), {"stdout": "{}"})


def write(stream, data):
    try:
        stream.buffer.write(data)
        stream.buffer.flush()
    except BrokenPipeError:
        os._exit(141)


left = step.get("signals", 0)


def count(number, _frame):
    global left
    left -= 1
    note("signals", signal.Signals(number).name)


if left:
    signal.signal(signal.SIGTERM, count)
    signal.signal(signal.SIGINT, count)
    note("started", str(os.getpid()))
write(sys.stdout, step.get("before", "").encode())
while left > 0:
    signal.pause()
if step.get("cat"):
    while data := sys.stdin.buffer.read1(1 << 16):
        write(sys.stdout, data)
    note("input-ended", "yes")
for _ in range(step.get("pieces", 0)):
    # Each is read by itself.
    write(sys.stdout, b"x")
    time.sleep(0.005)
for _ in range(step.get("much", 0) >> 16):
    write(sys.stdout, b"x" * (1 << 16))
write(sys.stdout, bytes.fromhex(step["hex"]) if "hex" in step else step.get("stdout", "").encode())
write(sys.stderr, step.get("stderr", "").encode())
if error_file is not None:
    for error in step.get("errors", []):
        with open(error_file, "a") as file:
            file.write(json.dumps(error) + "\n")
sys.exit(step.get("status", 0))
