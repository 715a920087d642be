"""Handlers for tests of the transports: real worker processes with nothing heavy in them."""

import os
import subprocess
import sys
import time
from pathlib import Path

from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Output, Task


def note(word: object) -> None:
    """Write down that something was really done, where a test counts it."""
    if "TEST_LEDGER" in os.environ:
        with Path(os.environ["TEST_LEDGER"]).open("a") as ledger:
            ledger.write(f"{word}\n")


def double(task: Task, _: ArtifactStore) -> Output:
    """Twice every item."""
    return Output([2 * item for item in task.items])


def slow(task: Task, _: ArtifactStore) -> Output:
    """Twice every item, after ``seconds``; what was begun and what was done is written down. Its file is one of an engine's."""
    note(f"begin:{task.items[0]}")
    time.sleep(task.params["seconds"])
    note(f"end:{task.items[0]}")
    return Output([2 * item for item in task.items], {"result.bin": b"%d" % task.items[0]})


def refuse(_: Task, __: ArtifactStore) -> Output:
    """An error with a field and a hint."""
    note("refuse")
    raise InvalidInput("size", "is odd.", hint="Make it even.")


def fail(_: Task, __: ArtifactStore) -> Output:
    """An unexpected error."""
    note("fail")
    raise ZeroDivisionError("the engine divided by zero")


def away(task: Task, _: ArtifactStore) -> Output:
    """Something it needs is away the first time."""
    note("away")
    if Path(os.environ["TEST_LEDGER"]).read_text().count("away") == 1:
        raise Unavailable("The model's server does not answer.")
    return Output(list(task.items))


def die(_: Task, __: ArtifactStore) -> Output:
    """What the kernel does to a worker without memory."""
    os._exit(9)


def fated(task: Task, _: ArtifactStore) -> Output:
    """Ends as its script says, a letter for each time it is begun: k as if killed, f fails, a lacks something, d done."""
    note("fated")
    begun = Path(os.environ["TEST_LEDGER"]).read_text().split().count("fated")
    match task.params["script"][begun - 1]:
        case "k":
            os._exit(9)
        case "f":
            raise ZeroDivisionError(f"in process {os.getpid()}")
        case "a":
            raise Unavailable("The model's server does not answer.")
    return Output([begun])


def bulk(task: Task, _: ArtifactStore) -> Output:
    """A result larger than a pipe's buffer."""
    return Output(["x" * 200_000 for _ in task.items])


def process(_: Task, __: ArtifactStore) -> Output:
    """Who did it."""
    return Output(os.getpid())


def parent(task: Task, _: ArtifactStore) -> Output:
    """Starts a process of a session of its own, writes down both numbers, and does not end."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(task.items[0]).write_text(f"{os.getpid()} {child.pid}\n")
    time.sleep(600)
    return Output([])


HANDLERS = {
    "echo.double": double,
    "echo.slow": slow,
    "other.double": double,
    "echo.bulk": bulk,
    "echo.refuse": refuse,
    "echo.fail": fail,
    "echo.away": away,
    "echo.die": die,
    "echo.fated": fated,
    "echo.process": process,
    "echo.parent": parent,
}
