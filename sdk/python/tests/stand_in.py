"""A program that stands in for banger, and a plan for it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve().parents[2] / "tests" / "stand_in.py"
ID = "0123456789abcdef0123456789abcdef"
SANDBOX = {"id": ID, "name": "web", "state": "running"}
#: How long something that has to happen may take, in seconds.
PATIENCE = 120.0


def error(code: str, about: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": "no.", "causes": ["so."], "remedy": "`try` again.", "about": about}


class StandIn:
    """Does what a plan says for each command line."""

    def __init__(self, *plan: dict[str, Any]) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = Path(self._directory.name)
        os.environ["STAND_IN"] = str(self.path)
        show = {"when": ["vm", "show"], "stdout": json.dumps(SANDBOX)}
        create = {"when": ["vm", "create"], "stdout": json.dumps(SANDBOX)}
        (self.path / "plan.json").write_text(json.dumps([*plan, show, create]))

    def calls(self) -> list[dict[str, Any]]:
        """Returns the calls, without those for the version."""
        lines = (self.path / "calls.jsonl").read_text().splitlines()
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if call["arguments"][0] != "version"]

    def arguments(self) -> list[str]:
        """Returns the arguments of the last call."""
        words: list[str] = self.calls()[-1]["arguments"]
        return words

    def signals(self) -> list[str]:
        file = self.path / "signals"
        return file.read_text().split() if file.exists() else []

    def has_read_all(self) -> bool:
        """Returns whether the input of a call with ``cat`` has ended."""
        return (self.path / "input-ended").exists()

    def has_started(self) -> bool:
        """Returns whether a call that waits for signals has begun."""
        return (self.path / "started").exists()

    def wait_for_start(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self.has_started():
            assert time.monotonic() < end, "nothing has started"
            time.sleep(0.01)

    def is_running(self) -> bool:
        """Returns whether any of the calls still runs."""
        return any(os.path.exists(f"/proc/{call['pid']}/stat") for call in self.calls())

    def close(self) -> None:
        os.environ.pop("STAND_IN", None)
        self._directory.cleanup()
