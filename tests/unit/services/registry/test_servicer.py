"""The registry over gRPC: the client does what the engine does, on replicas that share one database."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import grpc
import pytest

from services.registry.app import services
from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.errors import Conflict, InvalidInput, MissingWeights, NotFound, Unavailable
from sfumato.registry.client import RegistryClient
from sfumato.registry.models import Models
from sfumato.registry.records import Base, Edge, Lineage, Node, RegistryEvent, WeightedAdapter, version_id
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.settings import ClientSettings
from sfumato.v1 import common_pb2, registry_pb2
from sfumato.v1.registry_pb2_grpc import RegistryServiceStub
from tests.unit.services.registry.samples import BASE, TO_Q, adapter, register
from tests.unit.services.serving import SECONDS, served_at, told

INTERVAL = 0.05


@pytest.fixture
def place(database_url: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the service's program is told: an empty database of each kind, and the store."""
    monkeypatch.setenv("SFUMATO_REGISTRY_URL", database_url)
    monkeypatch.setenv("SFUMATO_ARTIFACTS", store.url)
    monkeypatch.setenv("SFUMATO_REGISTRY_WATCH_INTERVAL", str(INTERVAL))
    monkeypatch.setenv("SFUMATO_GRPC_WAITING", "100")


@pytest.fixture
def client(place: None, store: ArtifactStore) -> Iterator[RegistryClient]:
    with served_at(services, store) as address, RegistryClient(address, ClientSettings(timeout=SECONDS)) as opened:
        yield opened


@pytest.fixture
def stub(place: None, store: ArtifactStore) -> Iterator[RegistryServiceStub]:
    with served_at(services, store) as address, grpc.insecure_channel(address) as channel:
        yield RegistryServiceStub(channel)


def _lineage() -> Lineage:
    own = f"version:{version_id(BASE.id, (WeightedAdapter(adapter(1)[0]),))}"
    pair, prompt = Node.about("pair", seed=7, gain=1.0, ok=True, words="é\0", nested={"a": [1, None]}), Node.about("prompt", text="a boat")
    return Lineage((pair, prompt), (Edge(own, "learned_from", pair.id), Edge(pair.id, "asked_as", prompt.id)))


def _everything(models: Models) -> list[object]:
    """What a registry answers to all that can be asked, times and all ids of its own left out."""
    answers: list[object] = []
    digest, data = adapter(1)
    first = models.register(
        BASE, [WeightedAdapter(digest, 1.0)], files={digest: data}, lineage=_lineage(), metrics={"aesthetic": 5.5, "a": 1}, note="one"
    )
    second = models.register(Base(BASE.id, "tiny"), [WeightedAdapter(digest, 0.25), WeightedAdapter(digest)])
    merged = models.merge([(first.id, 1.0), (second.id[:12], -2.0)], "mean", rank=2, note="both")
    for version in (first, second, merged, models.get(first.id[:6])):
        answers.append((version.id, version.number, version.parts, dict(version.metrics), version.note, version.aliases, version.base.name))
    moves = [models.set_alias("production", first.id, expected="", reason="it begins")]
    moves.append(models.set_alias("production", second.id, expected=first.id))
    moves.append(models.set_alias("production", second.id, expected=second.id))
    moves.append(models.rollback("production", expected=second.id, reason="dark"))
    answers += [(move.alias, move.revision, move.previous, move.version, move.reason) for move in (*moves, *models.history("production"))]
    answers += [models.aliases(), models.resolve("production"), models.get("production").aliases, models.adapter(digest) == data]
    page = models.list(limit=2)
    answers += [[version.id for version in page.versions], page.following, len(models.list(following=page.following).versions)]
    answers += [models.lineage(first.id), models.lineage(first.id, 0), models.lineage(merged.id), models.list(base="e" * 64)]
    refusals: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: models.get("nobody"), NotFound, "nobody"),
        (lambda: models.get(""), NotFound, "no version"),
        (lambda: models.lineage("x" * 99), NotFound, "no version"),
        (lambda: models.rollback("canary", expected=""), NotFound, "canary"),
        (lambda: models.history("canary"), NotFound, "canary"),
        (lambda: models.set_alias("production", second.id, expected=second.id), Conflict, "not as expected"),
        (lambda: models.set_alias("decade", first.id, expected=""), InvalidInput, "alias"),
        (lambda: models.set_alias("a b", first.id, expected=""), InvalidInput, "alias"),
        (lambda: models.register(Base(BASE.id, "x"), [WeightedAdapter("d" * 64)]), MissingWeights, "d" * 64),
        (lambda: models.register(Base("f" * 64, "x", {TO_Q: [9, 9]}), [WeightedAdapter(digest)]), InvalidInput, "another model"),
        (lambda: models.register(Base(BASE.id, "x", {TO_Q: [9, 9]})), InvalidInput, "differ from the registered ones"),
        (lambda: models.merge([]), InvalidInput, "versions|sources"),
        (lambda: models.list(limit=501), InvalidInput, "limit"),
    ]
    for ask, error, words in refusals:
        with pytest.raises(error, match=words):
            ask()
    return answers


def test_the_client_answers_what_the_engine_answers(client: RegistryClient, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("local")
    with closing(Registry(Database(f"sqlite:///{folder}/r.sqlite"), ArtifactStore(str(folder)))) as engine:
        assert _everything(client) == _everything(engine)


def _fields(call: Callable[..., object], request: object) -> tuple[str, list[str]]:
    with pytest.raises(grpc.RpcError) as refused:
        call(request, timeout=SECONDS)
    code, _, fields = told(refused.value)
    return code.name, fields


def test_a_refused_field_is_named_by_its_path(stub: RegistryServiceStub) -> None:
    base, (digest, data) = registry_pb2.BaseModel(id=BASE.id, name="tiny"), adapter(1)
    refs = [common_pb2.AdapterRef(artifact=digest)]
    node = registry_pb2.LineageNode(kind="pair", digest="a" * 64, content='{"x": NaN}')

    def refused(**fields: object) -> tuple[str, list[str]]:
        return _fields(stub.Register, registry_pb2.RegisterRequest(**{"base": base} | fields))  # pyright: ignore[reportArgumentType]

    wrong = "INVALID_ARGUMENT"
    assert refused(base=registry_pb2.BaseModel(id="x")) == (wrong, ["base.id"])
    assert refused(adapters=[common_pb2.AdapterRef(artifact="../x")]) == (wrong, ["adapters[0].artifact"])
    assert refused(adapters=refs, files=[data, b"x"]) == (wrong, ["files[1]"])
    assert refused(files=[bytes(8 * 2**20 + 1)]) == (wrong, ["files[0]"])
    assert refused(adapters=refs) == ("FAILED_PRECONDITION", [])
    garbage = common_pb2.AdapterRef(artifact="2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    assert refused(adapters=[garbage], files=[b"x"]) == (wrong, ["adapters"])
    assert refused(metrics={"x": float("inf")}) == (wrong, ["metrics[x]"])
    assert refused(lineage=registry_pb2.LineageGraph(nodes=[node])) == (wrong, ["lineage.nodes[0].content"])
    node.content = "[1]"
    assert refused(lineage=registry_pb2.LineageGraph(nodes=[node])) == (wrong, ["lineage.nodes[0].content"])
    node.content = "[" * 100_000
    assert refused(lineage=registry_pb2.LineageGraph(nodes=[node])) == (wrong, ["lineage.nodes[0].content"])
    node.content = '{"x": 1}'
    assert refused(lineage=registry_pb2.LineageGraph(nodes=[node])) == (wrong, ["lineage"])
    version = stub.Register(registry_pb2.RegisterRequest(base=base, adapters=refs, files=[data])).version
    source = registry_pb2.MergeSource(version=version.id, weight=2.0)
    assert _fields(stub.Merge, registry_pb2.MergeRequest(sources=[])) == (wrong, ["sources"])
    assert _fields(stub.Merge, registry_pb2.MergeRequest(sources=[source, source], rank=0)) == (wrong, ["rank"])
    assert _fields(stub.Merge, registry_pb2.MergeRequest(sources=[source], method=9)) == (wrong, ["method"])  # pyright: ignore[reportArgumentType]
    assert _fields(lambda *a, **b: next(stub.WatchRegistry(*a, **b)), registry_pb2.WatchRegistryRequest(after=99)) == (wrong, ["after"])
    assert stub.Merge(registry_pb2.MergeRequest(sources=[source])).version.adapters


def test_edges_without_a_product_are_of_the_version_that_is_registered(stub: RegistryServiceStub) -> None:
    node = Node.about("run", id="elsewhere")
    graph = registry_pb2.LineageGraph(
        nodes=[registry_pb2.LineageNode(kind="run", digest=node.digest, content='{"id": "elsewhere"}')],
        edges=[registry_pb2.LineageEdge(relation="made_by", source=node.id)],
    )
    version = stub.Register(registry_pb2.RegisterRequest(base=registry_pb2.BaseModel(id=BASE.id, name="tiny"), lineage=graph)).version
    found = stub.GetLineage(registry_pb2.GetLineageRequest(version=version.id)).lineage
    assert (f"version:{version.id}", "made_by", node.id) in {(edge.node, edge.relation, edge.source) for edge in found.edges}


@contextmanager
def replicas(count: int, store: ArtifactStore) -> Iterator[list[str]]:
    """Addresses of replicas on the same database."""
    with ExitStack() as stack:
        yield [stack.enter_context(served_at(services, store)) for _ in range(count)]


class Follower:
    """Watches in a thread of its own until it has seen so many events."""

    def __init__(self, client: RegistryClient, after: int, count: int) -> None:
        self.seen: list[RegistryEvent] = []
        self._thread = threading.Thread(target=self._follow, args=(client, after, count))
        self._thread.start()

    def _follow(self, client: RegistryClient, after: int, count: int) -> None:
        for event in itertools.islice(client.watch(after), count):
            self.seen.append(event)

    def end(self) -> list[RegistryEvent]:
        self._thread.join(SECONDS)
        return self.seen


def test_of_many_clients_of_two_replicas_one_wins_each_step_and_all_see_the_same(place: None, store: ArtifactStore) -> None:
    rounds, racers = 5, 16
    with replicas(2, store) as addresses, ExitStack() as stack:
        clients = [stack.enter_context(RegistryClient(addresses[number % 2])) for number in range(racers)]
        ids = [register_through(clients[0], number) for number in range(3)]
        followers = [Follower(clients[number], 0, 3 + rounds) for number in range(2)]
        at = ""
        with ThreadPoolExecutor(racers) as pool:
            for number in range(rounds):
                target = ids[number % 3]

                def promote(client: RegistryClient, at: str = at, target: str = target) -> bool:
                    try:
                        client.set_alias("production", target, expected=at)
                        return True
                    except Conflict:
                        return False

                assert sum(pool.map(promote, clients)) == 1
                at = target
        history = clients[1].history("production")
        assert [move.revision for move in history] == list(range(1, rounds + 1))
        assert [move.version for move in history] == [ids[number % 3] for number in range(rounds)]
        assert [move.previous for move in history[1:]] == [move.version for move in history[:-1]]
        seen = [follower.end() for follower in followers]
        assert seen[0] == seen[1]
        assert [event.number for event in seen[0]] == list(range(1, 3 + rounds + 1))
        assert [(event.kind, event.subject) for event in seen[0][3:]] == [("alias", "production")] * rounds
        assert [event.content["version"] for event in seen[0][3:]] == [move.version for move in history]


def register_through(client: RegistryClient, seed: int) -> str:
    digest, data = adapter(seed)
    return client.register(BASE, [WeightedAdapter(digest)], files={digest: data}).id


def test_a_watch_goes_on_at_another_replica_without_losing_or_doubling_an_event(
    registry: Registry, place: None, store: ArtifactStore
) -> None:
    """The replica it watched is ended in between; the next one listens on the same port, as behind one name."""
    register(registry, 0)
    with served_at(services, store) as address:
        client = RegistryClient(address)
        follower = Follower(client, 0, 4)
        register(registry, 1)
        until(lambda: len(follower.seen) == 2)
    register(registry, 2)  # while nobody answers
    with served_at(services, store, address):
        register(registry, 3)
        seen = follower.end()
    client.close()
    assert [event.number for event in seen] == [1, 2, 3, 4]
    assert [event.subject for event in seen] == [version.id for version in reversed(registry.list().versions)]


def test_a_watch_from_now_on_tells_nothing_older_and_ends_when_the_service_does(place: None, store: ArtifactStore) -> None:
    with served_at(services, store) as address, grpc.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        base = registry_pb2.BaseModel(id=BASE.id, name="tiny")
        stub.Register(registry_pb2.RegisterRequest(base=base))
        answers = stub.WatchRegistry(registry_pb2.WatchRegistryRequest(), timeout=SECONDS)
        assert (next(answers).number, stub.ListAliases(registry_pb2.ListAliasesRequest()).aliases) == (1, {})
        digest, data = adapter(1)
        stub.Register(registry_pb2.RegisterRequest(base=base, adapters=[common_pb2.AdapterRef(artifact=digest)], files=[data]))
        found = next(answers)
        assert (found.number, found.event.registered.base) == (2, BASE.id)
    with pytest.raises(grpc.RpcError) as ended:
        next(answers)
    assert told(ended.value)[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_nobody_at_the_address_is_told() -> None:
    with RegistryClient("127.0.0.1:1") as client:
        for ask in (lambda: client.get("production"), lambda: next(client.watch())):
            with pytest.raises(Unavailable, match="127.0.0.1:1"):
                ask()


def until(true: Callable[[], bool]) -> None:
    """Wait for something that must come to be."""
    pause = threading.Event()
    while not true():
        pause.wait(0.02)
