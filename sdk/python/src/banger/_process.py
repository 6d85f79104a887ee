"""Runs the command ``banger``, without a shell, and makes sure that nothing of it is left running."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from . import _calls as calls
from ._base import BangerError
from ._calls import Call, Exec
from ._codes import NoSuchVMError
from ._errors import (
    OutputTooLargeError,
    ProgramNotFoundError,
    ProgramTooOldError,
    TimeLimitError,
    UnexpectedReplyError,
    ending_error,
    error_of,
)
from ._results import Chunk, ExecResult

T = TypeVar("T")
#: What a command reads: bytes, a text, or pieces of bytes.
Input = bytes | str | Iterable[bytes] | None
#: Makes the call that takes back what another one has done.
Undo = Callable[[T], "Call[Any] | None"]

#: The oldest version of the command that has what this package uses.
NEEDED = "0.1.0"
#: Errors of a start that are about the program. Others are about this process, or its arguments.
NOT_FOUND = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC)
#: How much is read at once, in bytes.
PIECE = 64 << 10
#: How much of standard error is kept for an error.
MAX_ERRORS = 64 << 10
#: How much of the file of errors is read.
MAX_REPORT = 1 << 20
#: How long a command may take to end after the second signal.
LAST_GRACE = 5.0


class DeadlinePassed(Exception):
    """The time limit of a command has passed."""


class Memory:
    """A file in memory that banger opens by the number of its descriptor."""

    def __init__(self, content: bytes = b"") -> None:
        self.fd = os.memfd_create("banger", os.MFD_CLOEXEC)
        view = memoryview(content)
        while view:
            view = view[os.write(self.fd, view) :]

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"

    def read(self) -> bytes:
        return os.pread(self.fd, MAX_REPORT, 0)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Prepared:
    """The words and descriptors of a run, which the synchronous and the asynchronous client share."""

    def __init__(self, program: str, arguments: tuple[str, ...], command: Exec | None = None) -> None:
        self.report = Memory()
        self.variables: Memory | None = None
        if command is not None and command.variables:
            self.variables = Memory(command.variables)
            # After the verb: `vm exec`.
            arguments = (*arguments[:2], f"--env-file={self.variables.path}", *arguments[2:])
        self.words = [program, "--error-file", self.report.path, *arguments]

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(file.fd for file in (self.report, self.variables) if file is not None)

    def close(self) -> None:
        self.report.close()
        if self.variables is not None:
            self.variables.close()


def reply_of(call: Call[T], status: int, output: bytes, errors: bytes, report: bytes) -> T:
    """Returns the reply of a run that has ended, or raises its error."""
    if status in call.statuses and (status == 0 or not report):
        return call.parse(output)
    error = error_of(report)
    if error is None:
        error = UnexpectedReplyError(f"banger ended with exit status {status}, and reported no error.", errors)
    raise error


def check_version(program: str, version: Mapping[str, object] | None) -> None:
    """Raises an error if the command is too old, or is something else."""
    found = version.get("client") if version is not None else None
    if not isinstance(found, str) or _numbers(found) < _numbers(NEEDED):
        raise ProgramTooOldError(program, found if isinstance(found, str) else None, NEEDED)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("-")[0].split("+")[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def result_of(command: Exec, status: int, output: bytes, errors: bytes) -> ExecResult:
    # A negative number is a signal that ended banger itself.
    return ExecResult(command.command, status if status >= 0 else 128 - status, output, errors)


class Process:
    """A running ``banger``."""

    def __init__(self, program: str, arguments: tuple[str, ...], input: Input = None, command: Exec | None = None) -> None:
        self._prepared = Prepared(program, arguments, command)
        try:
            self._child = subprocess.Popen(
                self._prepared.words,
                stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=self._prepared.descriptors,
                # A signal of the terminal would reach it, too, and count as the first of two.
                start_new_session=True,
            )
        except OSError as error:
            self._prepared.close()
            if error.errno not in NOT_FOUND:
                raise
            raise ProgramNotFoundError(program, error) from error
        except BaseException:
            self._prepared.close()
            raise
        self._selector = selectors.DefaultSelector()
        self._pending = b""
        self._input: Iterator[bytes] = _pieces(input)
        for name in ("stdout", "stderr"):
            self._selector.register(getattr(self._child, name), selectors.EVENT_READ, name)
        if self._child.stdin is not None:
            os.set_blocking(self._child.stdin.fileno(), False)
            self._selector.register(self._child.stdin, selectors.EVENT_WRITE, "stdin")

    def chunks(self, deadline: float | None = None) -> Iterator[Chunk]:
        """Yields the output as it comes, until it ends, and passes the input on meanwhile."""
        while any(key.data != "stdin" for key in self._selector.get_map().values()):
            for key, _events in self._selector.select(_left(deadline)):
                if key.data == "stdin":
                    self._send()
                    continue
                data = os.read(key.fd, PIECE)
                if data:
                    yield Chunk(key.data, data)
                else:
                    self._selector.unregister(key.fileobj)
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlinePassed
        self._end_input()

    def wait(self, deadline: float | None = None) -> int:
        """Waits for the end. Returns the exit status."""
        try:
            return self._child.wait(_left(deadline))
        except subprocess.TimeoutExpired:
            raise DeadlinePassed from None

    def report(self) -> bytes:
        """Returns the errors that it has reported."""
        return self._prepared.report.read()

    def end(self, grace: float) -> tuple[int, list[Chunk]]:
        """Ends it if it runs, and waits for that. Returns its exit status, and the last output."""
        rest: list[Chunk] = []
        length = 0
        # Input that was cut short must not look like a whole one: it stays open until the command has had its signal.
        self._stop_input()
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGTERM, LAST_GRACE), (signal.SIGKILL, LAST_GRACE)):
            if self._child.poll() is not None:
                break
            if number == signal.SIGKILL:
                # What it has started holds its pipes, too.
                os.killpg(self._child.pid, number)
            else:
                self._child.send_signal(number)
            deadline = time.monotonic() + seconds
            try:
                for chunk in self.chunks(deadline):
                    # What waits for a reader must not wait for ever; only a reply is of use here.
                    length += len(chunk.data)
                    if length <= calls.MAX_REPLY:
                        rest.append(chunk)
                self.wait(deadline)
            except DeadlinePassed:
                self._end_input()
        self._end_input()
        return self._child.wait(), rest

    def close(self) -> None:
        """Gives back its descriptors. It must have ended."""
        self._selector.close()
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        self._prepared.close()

    def _send(self) -> None:
        assert self._child.stdin is not None
        if not self._pending:
            self._pending = next(self._input, b"")
        if not self._pending:
            self._end_input()
            return
        try:
            self._pending = self._pending[os.write(self._child.stdin.fileno(), self._pending[:PIECE]) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            # It reads no more. Its exit status says whether that is an error.
            self._end_input()

    def _end_input(self) -> None:
        stdin = self._child.stdin
        if stdin is None or stdin.closed:
            return
        self._stop_input()
        try:
            stdin.close()
        except BrokenPipeError:
            pass

    def _stop_input(self) -> None:
        """Passes no more input on."""
        stdin = self._child.stdin
        if stdin is not None and stdin in (key.fileobj for key in self._selector.get_map().values()):
            self._selector.unregister(stdin)


def _pieces(input: Input) -> Iterator[bytes]:
    if input is None:
        return iter(())
    if isinstance(input, str):
        return iter((input.encode(),))
    if isinstance(input, (bytes, bytearray, memoryview)):
        return iter((bytes(input),))
    # An empty piece is not the end.
    return (bytes(piece) for piece in input if piece)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


class Runner:
    """Runs the command, once its version is known to be new enough."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._is_checked = False

    def run(self, call: Call[T], undo: Undo[T] | None = None) -> T:
        """Runs a call. If the wait for it ends early, for instance by Ctrl-C, the command is ended; if it was too late for
        that, ``undo`` returns the call that takes it back."""
        self.check()
        return self._run(call, undo)

    def check(self) -> None:
        """Checks that the command is there, and new enough."""
        if self._is_checked:
            return
        try:
            version = self._run(calls.version(), None)
        except UnexpectedReplyError:
            check_version(self.program, None)
            raise
        check_version(self.program, version)
        self._is_checked = True

    def _run(self, call: Call[T], undo: Undo[T] | None) -> T:
        process = Process(self.program, call.arguments, call.input, call.command)
        kept: list[Chunk] = []
        try:
            length = 0
            for chunk in process.chunks():
                length += len(chunk.data)
                if length > call.max_reply + MAX_ERRORS:
                    raise OutputTooLargeError(call.what, call.max_reply)
                kept.append(chunk)
            status = process.wait()
        except BaseException as first:
            _, rest = process.end(calls.JOB_GRACE)
            # One that was ended after it made something prints that as well.
            self._take_back(call, _joined("stdout", kept + rest), undo, first)
            raise
        else:
            report = process.report()
        finally:
            process.close()
        output = _joined("stdout", kept)
        try:
            return reply_of(call, status, output, _joined("stderr", kept), report)
        except BangerError as first:
            self._take_back(call, output, undo, first)
            raise

    def _take_back(self, call: Call[T], output: bytes, undo: Undo[T] | None, first: BaseException) -> None:
        """Takes back what a run has done that its caller does not get."""
        back = call_back(call, output, undo)
        if back is not None:
            self.undo(back, first)

    def undo(self, call: Call[Any], first: BaseException) -> None:
        """Runs a call after an error, which stays the one that counts."""
        try:
            self._run(call, None)
        except Exception as second:
            add_context(first, second)

    def exec(self, command: Exec, input: Input, time_limit: float | None, max_output: int) -> ExecResult:
        """Runs a command in a sandbox. Returns its end and its output."""
        self.check()
        deadline = None if time_limit is None else time.monotonic() + time_limit
        process = Process(self.program, command.arguments, input, command)
        kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        lengths = {"stdout": 0, "stderr": 0}

        def so_far(status: int) -> ExecResult:
            return result_of(command, status, b"".join(kept["stdout"])[:max_output], b"".join(kept["stderr"])[:max_output])

        try:
            for chunk in process.chunks(deadline):
                kept[chunk.stream].append(chunk.data)
                lengths[chunk.stream] += len(chunk.data)
                if lengths[chunk.stream] > max_output:
                    raise OutputTooLargeError(f"{chunk.stream} of {command.command[0]}", max_output, so_far(141))
            status = process.wait(deadline)
            error = failure_of(status, process.report())
        except DeadlinePassed:
            assert time_limit is not None
            status, _ = process.end(calls.EXEC_GRACE)
            raise TimeLimitError(so_far(status), time_limit) from None
        except BaseException:
            process.end(calls.EXEC_GRACE)
            raise
        finally:
            process.close()
        if error is not None:
            raise error
        return so_far(status)


def add_context(first: BaseException, second: BaseException) -> None:
    """Adds the error of an undo to the one that it followed."""
    if isinstance(second, NoSuchVMError):
        # It is gone already.
        return
    last = second
    while last.__context__ is not None and last.__context__ is not first:
        last = last.__context__
    last.__context__ = first.__context__
    first.__context__ = second


def call_back(call: Call[T], output: bytes, undo: Undo[T] | None) -> Call[Any] | None:
    """Returns the call that takes back what another one has done, if it has done something."""
    if undo is None or not output:
        return None
    try:
        return undo(call.parse(output))
    except BangerError:
        return None


def failure_of(status: int, report: bytes) -> BangerError | None:
    """Returns the error with which banger ended, if not the command in the sandbox has this exit status."""
    return None if status == 0 else ending_error(report)


def _joined(stream: str, chunks: list[Chunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks if chunk.stream == stream)

