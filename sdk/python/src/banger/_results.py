"""What a command in a sandbox did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Chunk", "ExecResult"]


@dataclass(frozen=True)
class ExecResult:
    """The end of a command, and its output."""

    #: The command and its arguments.
    command: tuple[str, ...]
    #: Its exit status; 128 plus the number of the signal that ended it.
    exit_status: int
    #: What it wrote to standard output.
    stdout_bytes: bytes = field(repr=False)
    #: What it wrote to standard error.
    stderr_bytes: bytes = field(repr=False)

    @property
    def stdout(self) -> str:
        """Standard output as text. Bytes that are not UTF-8 are replaced."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text. Bytes that are not UTF-8 are replaced."""
        return self.stderr_bytes.decode(errors="replace")


@dataclass(frozen=True)
class Chunk:
    """A part of the output of a command, as it arrives."""

    #: Where the command wrote it.
    stream: Literal["stdout", "stderr"]
    #: The bytes. A character can be cut in two.
    data: bytes

    @property
    def text(self) -> str:
        """The bytes as text. Those that are not UTF-8 are replaced."""
        return self.data.decode(errors="replace")
