"""Errors of this package, and those that banger reports to it."""

from __future__ import annotations

import json
import os
from typing import Any

from ._base import BangerError
from ._codes import BY_CODE
from ._results import ExecResult

__all__ = [
    "CommandFailedError",
    "NotAFileError",
    "OutputTooLargeError",
    "ProgramNotFoundError",
    "ProgramTooOldError",
    "TimeLimitError",
    "UnexpectedReplyError",
    "error_of",
]

#: How much of what a program wrote to standard error is quoted, in characters.
QUOTED = 2000


class OwnError(BangerError):
    """An error of this package, whose constructor has other arguments than its base."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), vars(self), self.args)


def _restored(kind: type[OwnError], attributes: dict[str, Any], args: tuple[Any, ...]) -> OwnError:
    error = kind.__new__(kind)
    error.__dict__.update(attributes)
    error.args = args
    return error


class ProgramNotFoundError(OwnError):
    """The command ``banger`` is not installed, or cannot be run."""

    def __init__(self, program: str, cause: OSError) -> None:
        super().__init__(
            "sdk.program-not-found",
            f"cannot run {program}.",
            [f"{os.strerror(cause.errno or 0)}."],
            "install the package `banger`, or give the path of the command: `Banger(program=PATH)`.",
        )


class ProgramTooOldError(OwnError):
    """The command ``banger`` is older than this package needs."""

    def __init__(self, program: str, found: str | None, needed: str) -> None:
        version = "a version that does not tell its number" if found is None else f"version {found}"
        super().__init__(
            "sdk.program-too-old",
            f"{program} is {version}, and this package needs {needed} or newer.",
            (),
            "upgrade the package `banger`.",
        )


class UnexpectedReplyError(OwnError):
    """The command ``banger`` ended, or printed something, that this package does not know."""

    def __init__(self, message: str, written: bytes = b"") -> None:
        text = written.decode(errors="replace").strip()[-QUOTED:]
        super().__init__("sdk.unexpected-reply", message, [text] if text else ())


class NotAFileError(OwnError):
    """What was to be read in a sandbox is a directory, or something else that is no file."""

    def __init__(self, path: str) -> None:
        super().__init__(
            "sdk.not-a-file",
            f"cannot read {path}: it is not a regular file.",
            (),
            "`files.list` lists a directory, and `files.download` copies it.",
        )


class CommandFailedError(OwnError):
    """A command in a sandbox that was to succeed has another exit status than 0."""

    #: What the command did.
    result: ExecResult

    def __init__(self, result: ExecResult) -> None:
        text = result.stderr.strip()[-QUOTED:]
        message = f"{result.command[0]} ended with exit status {result.exit_status}."
        super().__init__("sdk.command-failed", message, [text] if text else ())
        self.result = result


class TimeLimitError(OwnError):
    """A command in a sandbox ran longer than its time limit, and was ended."""

    #: What it had written until then.
    result: ExecResult

    def __init__(self, result: ExecResult, seconds: float) -> None:
        super().__init__("sdk.time-limit", f"{result.command[0]} ran longer than {seconds:g} s, and was ended.")
        self.result = result


class OutputTooLargeError(OwnError):
    """There was more output than the limit, and what wrote it was ended."""

    #: The beginning of what a command wrote; None if it was no command in a sandbox.
    result: ExecResult | None

    def __init__(self, what: str, limit: int, result: ExecResult | None = None) -> None:
        super().__init__(
            "sdk.output-too-large",
            f"{what} has more than {limit} bytes.",
            (),
            "raise the limit, or read the output as it comes with `stream`." if result else "raise the limit.",
        )
        self.result = result


def error_of(report: bytes) -> BangerError | None:
    """Returns the error in the file of ``--error-file``: the one that ended the command, else the first."""
    found: list[tuple[bool, BangerError]] = []
    for line in report.splitlines():
        try:
            row = json.loads(line)
            code, message, causes, remedy = (row[key] for key in ("code", "message", "causes", "remedy"))
            is_last = row["about"] is None
        except (ValueError, KeyError, TypeError):
            return UnexpectedReplyError("banger reported an error that is no JSON object with its keys.", line)
        known = BY_CODE.get(code, BangerError)
        found.append((is_last, known(code, message, causes, remedy)))
    last = [error for is_last, error in found if is_last]
    if last:
        return last[-1]
    return found[0][1] if found else None


def ending_error(report: bytes) -> BangerError | None:
    """Returns the error that ended a command in a sandbox, if banger failed and not the command."""
    for line in reversed(report.splitlines()):
        if b'"about":null' in line.replace(b" ", b""):
            return error_of(line)
    return None
