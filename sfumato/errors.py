"""The one tree of errors. Each carries the words a user needs to act; a boundary (CLI, gRPC, HTTP) translates it once."""


class SfumatoError(Exception):
    """Base of every error raised on purpose. ``hint`` says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class InvalidInput(SfumatoError):
    """A value given by a user or a client is unusable. ``field`` names it (CLI exit 2, INVALID_ARGUMENT, HTTP 400)."""

    def __init__(self, field: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{field}: {message}", hint=hint)
        self.field = field


class Faults(InvalidInput):
    """Several values are unusable, all told at once: ``faults`` is each one's field and words."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__(*faults[0])
        if len(faults) > 1:
            self.message = "\n  ".join([f"{len(faults)} faults:", *(f"{field}: {words}" for field, words in faults)])
        self.faults = tuple(faults)


class NotFound(SfumatoError):
    """What a user or a client names is not there: a run, a model, an alias (CLI exit 1, NOT_FOUND, HTTP 404)."""


class Conflict(SfumatoError):
    """Something moved since the caller looked at it; look again and decide anew (CLI exit 1, ABORTED, HTTP 409)."""


class WrongState(SfumatoError):
    """What is asked of something cannot be done as it stands, such as pausing a run that has ended (CLI exit 1, FAILED_PRECONDITION)."""


class MissingWeights(SfumatoError):
    """A model's files are not where they should be (CLI exit 2, FAILED_PRECONDITION)."""


class BrokenWeights(SfumatoError):
    """A model's or an artifact's file does not match its checksum, or cannot be read (CLI exit 2, DATA_LOSS)."""


class Unavailable(SfumatoError):
    """Something this needs is not running or does not answer (CLI exit 1, UNAVAILABLE)."""


class Busy(SfumatoError):
    """As much work as is taken is waiting already; try again later (CLI exit 1, RESOURCE_EXHAUSTED, HTTP 429).

    ``retry_after`` is in how many seconds, where that is known, else 0.
    """

    def __init__(self, message: str, *, hint: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class AnswerRejected(SfumatoError):
    """A vision-language model's answer failed validation. ``raw`` keeps what it said."""

    def __init__(self, message: str, raw: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.raw = raw


class Diverged(SfumatoError):
    """A training left the range of finite numbers; it stops with this reason, the run goes on."""


class PoisonTask(SfumatoError):
    """A task failed each time it was tried and was set aside as a dead letter. ``task_id`` names it: a run may go on without it."""

    def __init__(self, task_id: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.task_id = task_id
