"""The same as ``_process``, for asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable
from typing import Any, TypeVar

from . import _calls as calls
from ._base import BangerError
from ._calls import Call, Exec
from ._errors import OutputTooLargeError, ProgramNotFoundError, TimeLimitError, UnexpectedReplyError
from ._process import (
    LAST_GRACE,
    MAX_ERRORS,
    NOT_FOUND,
    PIECE,
    DeadlinePassed,
    Prepared,
    Undo,
    add_context,
    call_back,
    check_version,
    failure_of,
    reply_of,
    result_of,
)
from ._results import Chunk, ExecResult

T = TypeVar("T")
#: What a command reads: bytes, a text, or pieces of bytes.
AsyncInput = bytes | str | Iterable[bytes] | AsyncIterable[bytes] | None

#: How many pieces of output wait for their reader.
QUEUE = 16


class AsyncProcess:
    """A running ``banger``."""

    def __init__(self, prepared: Prepared, child: asyncio.subprocess.Process, input: AsyncInput) -> None:
        self._prepared = prepared
        self._child = child
        self._queue: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue(QUEUE)
        self._open = 2
        #: Whether the caller was cancelled while it started.
        self._is_cancelled = False
        self._exit = asyncio.ensure_future(child.wait())
        self._tasks = [
            asyncio.ensure_future(self._read("stdout", child.stdout)),
            asyncio.ensure_future(self._read("stderr", child.stderr)),
        ]
        if child.stdin is not None:
            self._tasks.append(asyncio.ensure_future(self._write(child.stdin, input)))

    @classmethod
    async def start(
        cls, program: str, arguments: tuple[str, ...], input: AsyncInput = None, command: Exec | None = None
    ) -> AsyncProcess:
        prepared = Prepared(program, arguments, command)
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *prepared.words,
                stdin=asyncio.subprocess.DEVNULL if input is None else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=prepared.descriptors,
                start_new_session=True,
            )
        )
        try:
            # Cancelled between fork and exec, asyncio would leave the child to itself.
            child, cancelled = await _undisturbed(starting)
        except OSError as error:
            prepared.close()
            if error.errno not in NOT_FOUND:
                raise
            raise ProgramNotFoundError(program, error) from error
        except BaseException:
            prepared.close()
            raise
        process = cls(prepared, child, input)
        process._is_cancelled = cancelled
        return process

    async def _read(self, name: str, pipe: asyncio.StreamReader | None) -> None:
        assert pipe is not None and name in ("stdout", "stderr")
        try:
            while data := await pipe.read(PIECE):
                await self._queue.put(Chunk("stdout" if name == "stdout" else "stderr", data))
        except OSError:
            # That is the end, too.
            pass
        self._open -= 1
        if self._open == 0:
            await self._queue.put(None)

    async def _write(self, pipe: asyncio.StreamWriter, input: AsyncInput) -> None:
        try:
            async for piece in _pieces(input):
                pipe.write(piece)
                await pipe.drain()
        except (BrokenPipeError, ConnectionResetError):
            # It reads no more. Its exit status says whether that is an error. asyncio keeps the error, too.
            pipe.close()
            await asyncio.gather(pipe.wait_closed(), return_exceptions=True)
        except Exception as error:
            # That of the iterable. The pipe stays open: what was cut short must not look like a whole input.
            await self._queue.put(error)
        else:
            pipe.close()

    async def chunks(self, deadline: float | None = None) -> AsyncIterator[Chunk]:
        """Yields the output as it comes, until it ends."""
        if self._is_cancelled:
            self._is_cancelled = False
            raise asyncio.CancelledError
        while True:
            chunk = await _before(deadline, self._queue.get())
            if chunk is None:
                # Others may wait for the end as well.
                self._queue.put_nowait(None)
                return
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    async def raise_cancellation(self) -> None:
        """Ends it if the caller was cancelled while it started."""
        if not self._is_cancelled:
            return
        try:
            await self.end(calls.EXEC_GRACE)
        finally:
            self.close()
        raise asyncio.CancelledError

    async def wait(self, deadline: float | None = None) -> int:
        """Waits for the end. Returns the exit status."""
        return await _before(deadline, asyncio.shield(self._exit))

    def report(self) -> bytes:
        """Returns the errors that it has reported."""
        return self._prepared.report.read()

    async def end(self, grace: float) -> tuple[int, list[Chunk]]:
        """Ends it if it runs, and waits for that, even if the caller is cancelled again. Returns its exit status, and the
        last output."""
        ended, cancelled = await _undisturbed(asyncio.ensure_future(self._end(grace)))
        del cancelled  # The caller raises what it was ended for.
        return ended

    async def _end(self, grace: float) -> tuple[int, list[Chunk]]:
        rest: list[Chunk] = []
        length = 0
        self._is_cancelled = False
        for task in self._tasks[2:]:
            task.cancel()
            # Its error is that of another time.
            await asyncio.gather(task, return_exceptions=True)
        del self._tasks[2:]
        loop = asyncio.get_running_loop()
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGTERM, LAST_GRACE), (signal.SIGKILL, LAST_GRACE)):
            try:
                if not self._exit.done():
                    # asyncio's own `send_signal` may take the exit status from who waits for it. At last, what it has
                    # started is ended, too: it holds the pipes.
                    (os.killpg if number == signal.SIGKILL else os.kill)(self._child.pid, number)
            except ProcessLookupError:
                pass
            deadline = loop.time() + (LAST_GRACE if self._exit.done() else seconds)
            try:
                # Of one that has ended, too: its pipes are closed when they have been read.
                while (item := await _before(deadline, self._queue.get())) is not None:
                    # What waits for a reader must not wait for ever; only a reply is of use here.
                    if isinstance(item, Chunk):
                        length += len(item.data)
                        if length <= calls.MAX_REPLY:
                            rest.append(item)
                self._queue.put_nowait(None)
                await self.wait(deadline)
            except DeadlinePassed:
                pass
            if self._exit.done():
                break
            self._end_input()
        return await self._exit, rest

    def close(self) -> None:
        """Gives back its descriptors. It must have ended."""
        for task in self._tasks:
            task.cancel()
        self._end_input()
        # Its pipes stay open if something else holds them.
        transport = getattr(self._child, "_transport", None)
        if transport is not None:
            transport.close()
        self._prepared.close()

    def _end_input(self) -> None:
        if self._child.stdin is not None:
            self._child.stdin.close()


async def _pieces(input: AsyncInput) -> AsyncIterator[bytes]:
    if input is None:
        return
    if isinstance(input, str):
        yield input.encode()
    elif isinstance(input, (bytes, bytearray, memoryview)):
        yield bytes(input)
    elif isinstance(input, AsyncIterable):
        async for piece in input:
            yield piece
    else:
        for piece in input:
            yield piece


async def _before(deadline: float | None, wanted: Awaitable[T]) -> T:
    """Waits for something until a deadline."""
    if deadline is None:
        return await wanted
    left = deadline - asyncio.get_running_loop().time()
    # `wait_for` of Python 3.11 and earlier can lose a cancellation.
    task = asyncio.ensure_future(wanted)
    try:
        done, _ = await asyncio.wait({task}, timeout=max(0.0, left))
    finally:
        if not task.done():
            task.cancel()
    if not done:
        raise DeadlinePassed
    return await task


async def _undisturbed(task: asyncio.Future[T]) -> tuple[T, bool]:
    """Waits for a task, and goes on waiting if it is cancelled. Returns the result, and whether that was asked for."""
    cancelled = False
    while True:
        try:
            return await asyncio.shield(task), cancelled
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            cancelled = True


class AsyncRunner:
    """Runs the command, once its version is known to be new enough."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._is_checked = False

    async def run(self, call: Call[T], undo: Undo[T] | None = None) -> T:
        """Runs a call. If the caller is cancelled, the command is ended; if it was too late for that, ``undo`` returns the
        call that takes it back."""
        await self.check()
        return await self._run(call, undo)

    async def check(self) -> None:
        """Checks that the command is there, and new enough."""
        if self._is_checked:
            return
        try:
            version = await self._run(calls.version(), None)
        except UnexpectedReplyError:
            check_version(self.program, None)
            raise
        check_version(self.program, version)
        self._is_checked = True

    async def _run(self, call: Call[T], undo: Undo[T] | None) -> T:
        process = await AsyncProcess.start(self.program, call.arguments, call.input, call.command)
        kept: list[Chunk] = []
        try:
            length = 0
            async for chunk in process.chunks():
                length += len(chunk.data)
                if length > call.max_reply + MAX_ERRORS:
                    raise OutputTooLargeError(call.what, call.max_reply)
                kept.append(chunk)
            status = await process.wait()
        except BaseException as first:
            _, rest = await process.end(calls.JOB_GRACE)
            # One that was ended after it made something prints that as well.
            await self._take_back(call, _joined("stdout", kept + rest), undo, first)
            raise
        else:
            report = process.report()
        finally:
            process.close()
        output = _joined("stdout", kept)
        try:
            return reply_of(call, status, output, _joined("stderr", kept), report)
        except BangerError as first:
            await self._take_back(call, output, undo, first)
            raise

    async def _take_back(self, call: Call[T], output: bytes, undo: Undo[T] | None, first: BaseException) -> None:
        """Takes back what a run has done that its caller does not get."""
        back = call_back(call, output, undo)
        if back is not None:
            await self.undo(back, first)

    async def undo(self, call: Call[Any], first: BaseException) -> None:
        """Runs a call after an error, which stays the one that counts, even if the caller is cancelled meanwhile."""

        async def undone() -> None:
            try:
                await self._run(call, None)
            except Exception as second:
                add_context(first, second)

        _, cancelled = await _undisturbed(asyncio.ensure_future(undone()))
        if cancelled and isinstance(first, Exception):
            raise asyncio.CancelledError from first

    async def exec(
        self, command: Exec, input: AsyncInput, time_limit: float | None, max_output: int
    ) -> ExecResult:
        """Runs a command in a sandbox. Returns its end and its output."""
        await self.check()
        deadline = None if time_limit is None else asyncio.get_running_loop().time() + time_limit
        process = await AsyncProcess.start(self.program, command.arguments, input, command)
        kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        lengths = {"stdout": 0, "stderr": 0}

        def so_far(status: int) -> ExecResult:
            output, errors = (b"".join(kept[name])[:max_output] for name in ("stdout", "stderr"))
            return result_of(command, status, output, errors)

        try:
            async for chunk in process.chunks(deadline):
                kept[chunk.stream].append(chunk.data)
                lengths[chunk.stream] += len(chunk.data)
                if lengths[chunk.stream] > max_output:
                    raise OutputTooLargeError(f"{chunk.stream} of {command.command[0]}", max_output, so_far(141))
            status = await process.wait(deadline)
            error = failure_of(status, process.report())
        except DeadlinePassed:
            assert time_limit is not None
            status, _ = await process.end(calls.EXEC_GRACE)
            raise TimeLimitError(so_far(status), time_limit) from None
        except BaseException:
            await process.end(calls.EXEC_GRACE)
            raise
        finally:
            process.close()
        if error is not None:
            raise error
        return so_far(status)


def _joined(stream: str, chunks: list[Chunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks if chunk.stream == stream)
