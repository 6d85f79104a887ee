"""Sandboxes with a kernel of their own, by the command ``banger``.

``Sandbox`` waits for each call; ``AsyncSandbox`` has the same methods for asyncio. Errors are subclasses of
``BangerError``, one for each code that banger reports.
"""

from __future__ import annotations

from . import _types as types
from ._async_client import AsyncBanger, AsyncCommandStream, AsyncEventStream, AsyncSandbox
from ._base import BangerError
from ._client import Banger, CommandStream, EventStream, Sandbox
from ._codes import *
from ._codes import __all__ as _codes
from ._errors import (
    CommandFailedError,
    NotAFileError,
    OutputTooLargeError,
    ProgramNotFoundError,
    ProgramTooOldError,
    TimeLimitError,
    UnexpectedReplyError,
)
from ._results import Chunk, ExecResult

__version__ = "0.1.0"

__all__ = [
    "AsyncBanger",
    "AsyncCommandStream",
    "AsyncEventStream",
    "AsyncSandbox",
    "Banger",
    "BangerError",
    "Chunk",
    "CommandFailedError",
    "CommandStream",
    "EventStream",
    "ExecResult",
    "NotAFileError",
    "OutputTooLargeError",
    "ProgramNotFoundError",
    "ProgramTooOldError",
    "Sandbox",
    "TimeLimitError",
    "UnexpectedReplyError",
    "types",
]
__all__ += _codes
