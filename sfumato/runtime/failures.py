"""A failure as a message, from the process where it happened to the process that reports it."""

from __future__ import annotations

import traceback

from pydantic import BaseModel, ConfigDict

from sfumato.errors import AnswerRejected, Blocked, BrokenWeights, Diverged, InvalidInput, MissingWeights, SfumatoError, Unavailable

# Characters; messages on the bus are limited.
LONGEST_MESSAGE = 4_000
LONGEST_TRACE = 16_000

_PLAIN = {kind.__name__: kind for kind in (MissingWeights, BrokenWeights, Unavailable, Blocked, Diverged)}


class Failure(BaseModel):
    """An error's class by name, its message and its traceback (for the log, not for a client)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    message: str
    hint: str = ""
    field: str = ""
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure of ``error``; texts that are too long are cut."""
        trace = "".join(traceback.format_exception(error))
        if len(trace) > LONGEST_TRACE:
            trace = f"{trace[: LONGEST_TRACE // 2]}\n[cut]\n{trace[-LONGEST_TRACE // 2 :]}"
        name = type(error).__name__
        if not isinstance(error, SfumatoError):
            return cls(kind=name, message=f"{name}: {error}"[:LONGEST_MESSAGE], trace=trace)
        message, field = error.message, ""
        if isinstance(error, InvalidInput):
            field, message = error.field, message.removeprefix(f"{error.field}: ")
        return cls(kind=name, message=message[:LONGEST_MESSAGE], hint=error.hint[:LONGEST_MESSAGE], field=field, trace=trace)

    def error(self) -> SfumatoError:
        """The error again; a class that is not one of `sfumato.errors` becomes a plain `SfumatoError`."""
        error = self._error()
        if self.trace:
            error.add_note(self.trace)
        return error

    def _error(self) -> SfumatoError:
        if self.kind == InvalidInput.__name__:
            return InvalidInput(self.field, self.message, hint=self.hint)
        if self.kind == AnswerRejected.__name__:
            return AnswerRejected(self.message, "", hint=self.hint)
        if self.kind in _PLAIN:
            return _PLAIN[self.kind](self.message, hint=self.hint)
        return SfumatoError(f"A task failed: {self.message}", hint=self.hint or "Finished work is kept: run the same command again.")


def is_final(error: BaseException) -> bool:
    """Whether the same task would fail again in the same way: the input or a model's files must be changed.

    `Unavailable` is temporary, and an unforeseen error may be the machine's.
    """
    return isinstance(error, SfumatoError) and not isinstance(error, Unavailable)


def is_passing(error: BaseException) -> bool:
    """Whether the error is not the task's fault: something that the task needs is unavailable."""
    return isinstance(error, Unavailable)
