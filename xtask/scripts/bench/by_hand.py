#!/usr/bin/python3
# Continues a suspended sandbox by hand: the command line of its QEMU, with files of the same numbers that are opened here.

import fcntl
import json
import os
import pathlib
import shutil
import socket
import sqlite3
import struct
import subprocess
import time

STATE = pathlib.Path("/var/lib/banger")
# The files of the disks, by QEMU's names for them. Those that are written to are copied.
DISKS = {"base0": "base.ext4", "layer0": "system.qcow2", "drive0": "system.ext4", "drive1": "work.ext4"}
TAP = "bench-tap"
# Numbers that no command line of QEMU has.
ABOVE = 500
# linux/if_tun.h: TUNSETIFF; IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
TUNSETIFF, TAP_FLAGS = 0x400454CA, 0x0002 | 0x1000 | 0x4000
# asm-generic/socket.h: SO_RCVBUFFORCE and SO_TIMESTAMPNS. linux/if_ether.h: ETH_P_IP.
SO_RCVBUFFORCE, SO_TIMESTAMPNS, ETH_P_IP = 33, 35, 0x0800


def process_of(sandbox):
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")[:-1]
        except OSError:
            # Processes come and go.
            continue
        if ["-name", f"banger-{sandbox}"] in [words[at : at + 2] for at in range(len(words))]:
            return process, words
    raise SystemExit(f"{sandbox} has no QEMU")


def tap_of(process):
    for info in (process / "fdinfo").iterdir():
        for line in info.read_text().splitlines():
            if line.startswith("iff:"):
                return line.split()[1]
    raise SystemExit("QEMU has no TAP")


def open_file(process, name):
    """Opens the file of this name that a process has open. Its number in the command line is that of a duplicate."""
    for link in (process / "fd").iterdir():
        if os.readlink(link).endswith(f"/{name}"):
            return os.open(link, os.O_RDONLY)
    raise SystemExit(f"QEMU has not opened {name}")


def pss_kib(process):
    lines = (process / "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Heartbeats:
    """The datagrams that a guest sends, as the host's kernel sees them come out of its TAP."""

    def __init__(self, tap):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.bind((tap, ETH_P_IP))
        self.socket.setblocking(False)
        self.times = []

    def read(self):
        while True:
            try:
                frame, ancillary, _, _ = self.socket.recvmsg(2048, 256)
            except BlockingIOError:
                return self.times
            # UDP to the port for what is discarded.
            if frame[23] == 17 and frame[36:38] == b"\0\x09":
                seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
                self.times.append(seconds * 1000 + nanoseconds / 1e6)

    def wait_for_more(self):
        before, end = len(self.read()), time.monotonic() + 240
        while len(self.read()) < before + 20:
            if time.monotonic() > end:
                raise SystemExit("waited for heartbeats")
            time.sleep(0.01)

    def largest_gap(self, act):
        """Returns the longest time in milliseconds without a heartbeat while this acts."""
        self.wait_for_more()
        self.times = self.times[-1:]
        act()
        self.wait_for_more()
        return max(after - before for before, after in zip(self.times, self.times[1:]))


class ByHand:
    """A QEMU that continues from the memory of a suspended sandbox, with a copy of its disks, and is ended at the end."""

    def __init__(self, sandbox, words, modules):
        self.words, self.pid = words, None
        self.directory = STATE / "bench-instant"
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        self.log = (self.directory / "log").open("w")
        self.state = self.directory / "state"
        shutil.copy(STATE / "captures" / sandbox / "state", self.state)
        self.modules = modules
        self.nodes = {"drive2": f"/proc/self/fd/{modules}"}
        for node, name in DISKS.items():
            disk = STATE / "vms" / sandbox / name
            if disk.exists():
                copy = self.directory / name
                if node == "base0":
                    os.link(disk, copy)
                else:
                    subprocess.run(["cp", "--sparse=always", "--reflink=auto", disk, copy], check=True)
                self.nodes[node] = copy
        database = sqlite3.connect(f"file:{STATE}/db/banger.sqlite?mode=ro", uri=True)
        self.token = database.execute("SELECT token FROM vms WHERE id = ?", [sandbox]).fetchone()[0]
        # Neither the copies nor their writeback may count.
        os.sync()
        self.files = {}
        self.open_all()
        subprocess.run(["ip", "link", "set", TAP, "up"], check=True)

    def open_all(self):
        fields = [dict(one.partition("=")[::2] for one in word.split(",")) for word in self.words]
        nodes = {one["filename"].rpartition("/")[2]: one for one in fields if "/dev/fdset/" in one.get("filename", "")}
        for kind, one in zip([word.split(",")[0] for word in self.words], fields):
            if "mem-path" in one:
                memory = os.memfd_create("guest")
                os.truncate(memory, int(one["size"].rstrip("M")) << 20)
                self.keep(one["mem-path"].rpartition("/")[2], memory)
            elif kind == "socket":
                channel = socket.socket(socket.AF_UNIX)
                channel.bind(str(self.directory / one["id"]))
                channel.listen()
                self.keep(one["fd"], channel.detach())
            elif kind == "tap":
                tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", TAP.encode(), TAP_FLAGS))
                self.keep(one["fd"], tap)
            elif "set" in one:
                node = nodes[one["set"]]
                access = os.O_RDONLY if node["read-only"] == "on" else os.O_RDWR
                self.keep(one["fd"], os.open(self.nodes[node["node-name"]], access))

    def keep(self, number, file):
        self.files[int(number)] = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, ABOVE)
        os.close(file)

    def load(self, hello, request, expect):
        """Starts QEMU, lets the guest continue, and has its agent answer a request."""
        actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, self.log.fileno(), output) for output in (1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, file, number) for number, file in self.files.items()]
        self.pid = os.posix_spawn(self.words[0], self.words, {}, file_actions=actions)
        for file in self.files.values():
            os.close(file)
        self.qmp = self.connect("qmp")
        self.answers = self.qmp.makefile("r")
        self.answers.readline()
        self.ask("qmp_capabilities")
        with self.state.open("rb") as state:
            self.pass_file(state.fileno())
        self.ask("migrate-incoming", uri="fd:state")
        self.until("query-status", lambda status: status != "inmigrate")
        self.ask("cont")
        agent = self.connect("agent1")
        agent.sendall(hello[:-32] + self.token.encode() + request)
        answer = b""
        while expect not in answer:
            more = agent.recv(4096)
            if not more:
                raise SystemExit(f"the agent says {answer}")
            answer += more
        agent.close()

    def capture(self):
        """Stops the guest, writes its memory to a file, and lets it run."""
        self.ask("stop")
        self.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        with (self.directory / "captured").open("wb") as captured:
            self.pass_file(captured.fileno())
            self.ask("migrate", uri="fd:state")
            self.until("query-migrate", lambda status: status in ("completed", "failed"))
        self.ask("cont")
        if self.ask("query-migrate")["status"] != "completed":
            raise SystemExit("QEMU has saved nothing")

    def connect(self, name):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(120)
        connection.connect(str(self.directory / name))
        return connection

    def pass_file(self, file):
        self.ask("getfd", file, fdname="state")

    def ask(self, command, *files, **arguments):
        request = json.dumps({"execute": command, "arguments": arguments}) + "\n"
        socket.send_fds(self.qmp, [request.encode()], files)
        while True:
            line = self.answers.readline()
            answer = json.loads(line) if line else {"error": (self.directory / "log").read_text()}
            if "error" in answer:
                raise SystemExit(f"QEMU fails at {command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def until(self, query, is_over):
        while not is_over(self.ask(query).get("status")):
            time.sleep(0.002)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self.modules)
        shutil.rmtree(self.directory)
