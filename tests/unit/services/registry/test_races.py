"""Several processes at once, on SQLite and PostgreSQL."""

import subprocess
import sys
import threading

from services.registry.engine import Registry
from sfumato.registry.records import Event
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
    seen: list[Event] = []
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
