"""All error classes. Each carries the message that a user needs to act; a boundary (CLI, gRPC, HTTP) translates it once."""


class SfumatoError(Exception):
    """Base of all deliberate errors. ``hint`` states what to do next."""

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
    """Several values are unusable; all are reported together: ``faults`` has the field and the message of each."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__(*faults[0])
        if len(faults) > 1:
            self.message = "\n  ".join([f"{len(faults)} faults:", *(f"{field}: {words}" for field, words in faults)])
        self.faults = tuple(faults)


class NotFound(SfumatoError):
    """Something that a user or a client names does not exist: a run, a model, an alias (CLI exit 1, NOT_FOUND, HTTP 404)."""


class Conflict(SfumatoError):
    """A resource changed since the caller read it; read it again and retry (CLI exit 1, ABORTED, HTTP 409)."""


class WrongState(SfumatoError):
    """The operation is not possible in the current state, such as pausing a run that has ended (CLI exit 1, FAILED_PRECONDITION)."""


class MissingWeights(SfumatoError):
    """A model's files are missing (CLI exit 2, FAILED_PRECONDITION)."""


class BrokenWeights(SfumatoError):
    """A model's or an artifact's file does not match its checksum, or cannot be read (CLI exit 2, DATA_LOSS)."""


class Unavailable(SfumatoError):
    """A required service is not running or does not answer (CLI exit 1, UNAVAILABLE)."""


class Blocked(Unavailable):
    """A required service refuses, and will until somebody changes it: a full disk, a missing permission, a bucket that does not exist.

    It is not tried again for long: ``hint`` says what to change (CLI exit 1, UNAVAILABLE, HTTP 503).
    """


class Busy(SfumatoError):
    """The queue is full; try again later (CLI exit 1, RESOURCE_EXHAUSTED, HTTP 429).

    ``retry_after`` is the delay in seconds, 0 if it is not known.
    """

    def __init__(self, message: str, *, hint: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class AnswerRejected(SfumatoError):
    """A vision-language model's answer failed validation. ``raw`` is the answer."""

    def __init__(self, message: str, raw: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.raw = raw


class Diverged(SfumatoError):
    """A training produced numbers that are not finite; it stops with this reason, and the run continues."""


class PoisonTask(SfumatoError):
    """A task failed at every try and became a dead letter. ``task_id`` names it: a run may continue without it."""

    def __init__(self, task_id: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.task_id = task_id
