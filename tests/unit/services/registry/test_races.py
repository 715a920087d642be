"""Several processes at once, on SQLite and PostgreSQL."""

import subprocess
import sys
import threading
import time
from contextlib import closing

from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.registry.records import RegistryEvent
from sfumato.runtime.artifacts import ArtifactStore
from tests.unit.services.registry.samples import register

ROUNDS = 6


def test_of_processes_that_race_for_an_alias_exactly_one_wins_each_time(
    registry: Registry, database_url: str, store: ArtifactStore
) -> None:
    versions = [[register(registry, 3 * number + racer).id for number in range(ROUNDS)] for racer in range(3)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.services.registry.racing", database_url, store.url, *own],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for own in versions
    ]

    def say(words: str) -> None:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(f"{words}\n")
            racer.stdin.flush()

    def hear() -> list[str]:
        return [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]

    at = ""
    for number in range(ROUNDS):
        assert hear() == ["ready"] * 3
        say(at)
        said = hear()
        assert sorted(said) == ["lost", "lost", "won"]
        at = versions[said.index("won")][number]
        assert registry.resolve("production") == at
    for racer in racers:
        racer.communicate()
        assert racer.returncode == 0
    moves = registry.history("production")
    assert [move.revision for move in moves] == list(range(1, ROUNDS + 1))
    assert [move.previous for move in moves[1:]] == [move.version for move in moves[:-1]]


def test_who_reads_while_many_write_sees_every_event_once_and_in_order(registry: Registry) -> None:
    writers = [threading.Thread(target=lambda part=part: [register(registry, part * 10 + n) for n in range(4)]) for part in range(3)]
    seen: list[RegistryEvent] = []
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen += registry.events(seen[-1].number if seen else 0, limit=2)
    for writer in writers:
        writer.join()
    while more := registry.events(seen[-1].number if seen else 0):
        seen += more
    assert [event.number for event in seen] == list(range(1, 13))
    assert len({event.subject for event in seen}) == 12


def test_an_event_that_is_committed_late_is_not_passed_by(database_url: str, store: ArtifactStore) -> None:
    """Two replicas write at once, each dawdles between number and commit: a reader who goes on from the last number loses none.

    With numbers from a sequence one would be skipped here: it is taken first and committed last.
    """
    with closing(Database(database_url)) as one, closing(Database(database_url)) as two, closing(Database(database_url)) as reading:
        registry, seen, numbered = Registry(reading, store), list[RegistryEvent](), threading.Event()

        def dawdle(database: Database, name: str, times: int) -> None:
            for number in range(times):
                with database.writing() as writing:
                    writing.say("collected", f"{name}{number}")
                    writing.session.flush()  # the number is taken, and in the database for all that it knows
                    numbered.set()
                    time.sleep(0.01 * (number % 3))

        writers = [threading.Thread(target=dawdle, args=(database, name, 10)) for database, name in ((one, "a"), (two, "b"), (two, "c"))]
        for writer in writers:
            writer.start()
        assert numbered.wait(30)
        while any(writer.is_alive() for writer in writers) or len(seen) < registry.latest():
            seen += registry.events(seen[-1].number if seen else 0)
        assert [event.number for event in seen] == list(range(1, 31))
        assert {event.subject for event in seen} == {f"{name}{number}" for name in "abc" for number in range(10)}
        for name in "abc":
            assert [event.subject for event in seen if event.subject[0] == name] == [f"{name}{number}" for number in range(10)]


def test_whoever_writes_next_waits_for_a_number_until_the_last_one_is_committed(database_url: str, store: ArtifactStore) -> None:
    with closing(Database(database_url)) as one, closing(Database(database_url)) as two:
        registry, done = Registry(two, store), threading.Event()

        def second() -> None:
            with two.writing() as writing:
                writing.say("collected", "second")
            done.set()

        with one.writing() as writing:
            writing.say("collected", "first")
            writing.session.flush()
            writer = threading.Thread(target=second)
            writer.start()
            assert not done.wait(0.3)  # it cannot overtake, however long this takes
            assert registry.events() == ()
        writer.join()
        assert [(event.number, event.subject) for event in registry.events()] == [(1, "first"), (2, "second")]
