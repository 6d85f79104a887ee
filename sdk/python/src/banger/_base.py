"""The base of all errors."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["BangerError"]


class BangerError(Exception):
    """banger, or this package, cannot do what was asked."""

    #: What happened, for programs: the name of the error on the bus, or a short code.
    code: str
    #: What happened, as a sentence.
    message: str
    #: Why, the nearest cause first.
    causes: tuple[str, ...]
    #: What to do about it; None if the message says everything.
    remedy: str | None

    def __init__(self, code: str, message: str, causes: Sequence[str] = (), remedy: str | None = None) -> None:
        super().__init__(code, message, tuple(causes), remedy)
        self.code = code
        self.message = message
        self.causes = tuple(causes)
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  because: {cause}" for cause in self.causes]
        if self.remedy is not None:
            lines.append(f"hint: {self.remedy}")
        return "\n".join(lines)
