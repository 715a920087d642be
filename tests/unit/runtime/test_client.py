"""Calling services: large files in chunks, tokens, TLS, and refusals as our errors."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr

from sfumato.errors import (
    AnswerRejected,
    BrokenWeights,
    Busy,
    Conflict,
    Diverged,
    InvalidInput,
    MissingWeights,
    NotFound,
    SfumatoError,
    Unavailable,
)
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.client import calling, channel, download, upload
from sfumato.runtime.serving.artifacts import CHUNK, ArtifactServicer
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Server, Service
from sfumato.runtime.settings import ClientSettings, ServingSettings
from sfumato.v1 import scoring_pb2, scoring_pb2_grpc
from sfumato.v1.artifacts_pb2 import GetRequest, PutRequest, StatRequest
from sfumato.v1.artifacts_pb2_grpc import ArtifactServiceStub
from tests.unit.runtime.certificates import Certificates, mounted

NOTHING = ClientSettings()


class Scoring(scoring_pb2_grpc.ScoringServiceServicer):
    """Raises what the test has it raise; with nothing to raise, it never answers."""

    error: Exception | None = SfumatoError("?")

    async def ListMetrics(self, request: Any, context: Any) -> Any:
        if self.error is None:
            await asyncio.Event().wait()
        assert self.error is not None
        raise self.error


@contextmanager
def serving(store: ArtifactStore, **settings: Any) -> Iterator[tuple[str, Scoring]]:
    """The address of a server of the store and of a service that refuses everything."""
    ready, over, addresses, scoring = threading.Event(), threading.Event(), list[str](), Scoring()
    queue = EngineQueue(lambda: None)

    async def serve() -> None:
        def register(server: Any) -> None:
            scoring_pb2_grpc.add_ScoringServiceServicer_to_server(scoring, server)

        service = Service("sfumato.v1.ScoringService", register, queue)
        server = Server([service], ServingSettings(grace=1.0, **settings), artifacts=store)
        addresses.append(f"localhost:{await server.start()}")
        ready.set()
        await asyncio.to_thread(over.wait)
        await server.drain()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield addresses[0], scoring
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def server(store: ArtifactStore) -> Iterator[tuple[str, Scoring]]:
    with serving(store, max_artifact=4 * 2**20) as found:
        yield found


@pytest.fixture
def open_channel(server: tuple[str, Scoring]) -> Iterator[grpc.Channel]:
    with channel(server[0], NOTHING) as opened:
        yield opened


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_file_goes_to_the_store_and_comes_back(open_channel: grpc.Channel, store: ArtifactStore, size: int) -> None:
    data = os.urandom(size)
    digest = upload(open_channel, data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert store.get(digest) == data == download(open_channel, digest)
    assert upload(open_channel, data) == digest
    stat = ArtifactServiceStub(open_channel).Stat(StatRequest(digest=digest))
    assert (stat.held, stat.size) == (True, size)


def put(opened: grpc.Channel, *pieces: PutRequest) -> SfumatoError:
    """What putting these pieces is refused with."""
    with pytest.raises(SfumatoError) as caught, calling():
        ArtifactServiceStub(opened).Put(iter(pieces))
    return caught.value


def test_a_file_that_is_not_what_it_says_or_too_large_is_not_stored(open_channel: grpc.Channel, store: ArtifactStore) -> None:
    digest = hashlib.sha256(b"other").hexdigest()
    before = set(store.keys("blobs"))
    cut, mixed = PutRequest(digest=digest, chunk=b"oth"), PutRequest(digest="0" * 64, chunk=b"er")
    for pieces in ((cut,), (cut, mixed), (), (PutRequest(chunk=b"other"),), (PutRequest(digest="../../x", chunk=b"other"),)):
        error = put(open_channel, *pieces)
        assert isinstance(error, InvalidInput) and error.field == "digest", error
    large = put(open_channel, PutRequest(digest=digest), *[PutRequest(chunk=bytes(2**20))] * 5)
    assert isinstance(large, InvalidInput) and large.field == "chunk"
    vast = put(open_channel, PutRequest(digest=digest, chunk=bytes(2**20 + 1)))
    assert isinstance(vast, InvalidInput) and vast.field == "chunk"
    assert set(store.keys("blobs")) == before


def test_files_in_transit_share_one_limit(open_channel: grpc.Channel) -> None:
    first, second = bytes(3 * 2**20), bytes(range(256)) * 2**13
    got, go = threading.Event(), threading.Event()

    def slowly() -> Iterator[PutRequest]:
        yield PutRequest(digest=hashlib.sha256(first).hexdigest(), chunk=first[: 2**20])
        yield PutRequest(chunk=first[2**20 : 2 * 2**20])
        yield PutRequest(chunk=first[2 * 2**20 :])
        got.set()
        go.wait(30)

    stub = ArtifactServiceStub(open_channel)
    answer = stub.Put.future(slowly())
    assert got.wait(30)
    while True:  # until the server has read what was sent
        try:
            with calling():
                digest = hashlib.sha256(second).hexdigest()
                stub.Put(iter([PutRequest(digest=digest, chunk=second[: 2**20]), PutRequest(chunk=second[2**20 :])]))
        except Busy:
            break
        second = second[1:] + second[:1]
    go.set()
    assert answer.result().size == len(first)
    assert upload(open_channel, second)


def test_a_sender_that_pauses_too_long_is_refused(store: ArtifactStore) -> None:
    async def silent() -> AsyncIterator[PutRequest]:
        yield PutRequest(digest="0" * 64, chunk=b"some")
        await asyncio.Event().wait()

    with pytest.raises(Unavailable, match="No piece came"):
        asyncio.run(ArtifactServicer(store, 2**20, patience=0.02).Put(silent(), None))


def test_too_many_open_calls_find_the_service_busy(store: ArtifactStore) -> None:
    with serving(store, max_calls=1) as (address, scoring), channel(address, NOTHING) as opened:
        scoring.error = None
        stub = scoring_pb2_grpc.ScoringServiceStub(opened)
        both = [stub.ListMetrics.future(scoring_pb2.ListMetricsRequest()) for _ in range(2)]
        while not (done := [call for call in both if call.done()]):
            time.sleep(0.005)
        with pytest.raises(Busy, match="most open calls"), calling():
            done[0].result()
        for call in both:
            call.cancel()


def test_missing_and_damaged_artifacts_are_errors(open_channel: grpc.Channel, store: ArtifactStore) -> None:
    with pytest.raises(NotFound, match="0{64}"):
        download(open_channel, "0" * 64)
    assert not ArtifactServiceStub(open_channel).Stat(StatRequest(digest="0" * 64)).held
    digest = store.put(b"whole")
    store.write_key(f"blobs/{digest[:2]}/{digest}", b"broken")
    with pytest.raises(BrokenWeights, match="damaged"):
        download(open_channel, digest)
    for bad in ("", "../x", "A" * 64, "0" * 64 + "\n"):
        with pytest.raises(InvalidInput, match="digest"), calling():
            list(ArtifactServiceStub(open_channel).Get(GetRequest(digest=bad)))


@pytest.mark.parametrize(
    "error",
    [
        NotFound("There is no such run."),
        Conflict("It moved."),
        Busy("Later."),
        Unavailable("Loading."),
        MissingWeights("They are not there."),
        BrokenWeights("They are damaged."),
        AnswerRejected("It said nothing.", raw="secret"),
    ],
)
def test_refusals_come_back_as_they_were_raised(open_channel: grpc.Channel, server: tuple[str, Scoring], error: SfumatoError) -> None:
    assert said(open_channel, server, error) == (type(error), str(error))


def said(opened: grpc.Channel, server: tuple[str, Scoring], error: Exception) -> tuple[type[SfumatoError], str]:
    server[1].error = error
    with pytest.raises(SfumatoError) as caught, calling(server[0]):
        scoring_pb2_grpc.ScoringServiceStub(opened).ListMetrics(scoring_pb2.ListMetricsRequest())
    return type(caught.value), str(caught.value)


def test_a_refused_field_comes_back_with_its_name(open_channel: grpc.Channel, server: tuple[str, Scoring]) -> None:
    server[1].error = InvalidInput("painting.width", "25 is not a multiple of 8.", hint="Take 24.")
    with pytest.raises(InvalidInput) as caught, calling():
        scoring_pb2_grpc.ScoringServiceStub(open_channel).ListMetrics(scoring_pb2.ListMetricsRequest())
    assert caught.value.field == "painting.width"
    assert str(caught.value) == "painting.width: 25 is not a multiple of 8. Take 24."
    with pytest.raises(InvalidInput) as caught, calling():
        scoring_pb2_grpc.ScoringServiceStub(open_channel).Score(scoring_pb2.ScoreRequest(metrics=["!"]))
    assert caught.value.field == "items" and "metrics[0]" in str(caught.value)


def test_unforeseen_errors_return_an_incident_number_only(open_channel: grpc.Channel, server: tuple[str, Scoring]) -> None:
    kind, words = said(open_channel, server, ValueError("a secret"))
    assert kind is SfumatoError and "incident" in words and "secret" not in words
    assert said(open_channel, server, Diverged("It exploded."))[0] is SfumatoError


def test_an_address_without_a_service_is_named_in_the_error() -> None:
    silent = pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 does not answer.*sfumato up")
    with channel("127.0.0.1:1", NOTHING) as opened, silent, calling("127.0.0.1:1"):
        ArtifactServiceStub(opened).Stat(StatRequest(digest="0" * 64))


def test_tokens_and_certificates_are_sent_with_streams_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Certificates(tmp_path)
    tls = {"tls_certificate": files.certificate("server"), "tls_key": files.key("server"), "tls_client_authority": files.authority}
    with serving(ArtifactStore(str(tmp_path / "store")), token="right", **tls) as (address, _):
        right: dict[str, Any] = {"ca": files.authority, "certificate": files.certificate("client"), "key": files.key("client")}

        def through(**settings: Any) -> str:
            with channel(address, ClientSettings(**settings)) as opened:
                return download(opened, upload(opened, b"picture")).decode()

        monkeypatch.setenv("SFUMATO_CLIENT_TOKEN", "right")
        assert through(**right) == "picture"
        refused: list[Callable[[], Any]] = [lambda: through(**right, token="wrong"), lambda: through(**right, token="")]
        for call in refused:
            with pytest.raises(InvalidInput, match="SFUMATO_CLIENT_TOKEN"):
                call()
        with channel(address, ClientSettings(**right, token=SecretStr("wrong"))) as opened:
            error = put(opened, PutRequest(digest="0" * 64))
            assert isinstance(error, InvalidInput) and error.field == "token"
        with pytest.raises(Unavailable):
            through(ca=files.authority)
        with pytest.raises(Unavailable):
            through()
    with pytest.raises(InvalidInput, match="SFUMATO_CLIENT_KEY"):
        channel(address, ClientSettings(certificate=files.authority))
    with pytest.raises(InvalidInput, match="cannot be read"):
        channel(address, ClientSettings(ca=tmp_path / "none.pem"))


def test_a_channel_uses_renewed_certificates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server's authority is another one from one call to the next, and so is the client's certificate that it takes."""
    mounted(tmp_path, "old")
    place = tmp_path / "mounted"
    tls = {"tls_certificate": place / "server.pem", "tls_key": place / "server.key", "tls_client_authority": place / "authority.pem"}
    settings = ClientSettings(ca=place / "authority.pem", certificate=place / "client.pem", key=place / "client.key")
    caplog.set_level("INFO")
    with serving(ArtifactStore(str(tmp_path / "store")), **tls) as (address, _), channel(address, settings) as opened:
        stub = ArtifactServiceStub(opened)
        assert download(opened, upload(opened, b"old")) == b"old"
        for name in ("new", "newest"):
            mounted(tmp_path, name)
            assert download(opened, upload(opened, name.encode())) == name.encode()
            assert not stub.Stat(StatRequest(digest="0" * 64)).held  # by a stub from before
        (place / "client.key").unlink()
        assert download(opened, upload(opened, b"old")) == b"old"  # with those before
    said = [record.getMessage() for record in caplog.records if record.name == "sfumato.runtime.renewing"]
    assert said[:2] == ["A client's certificate was renewed."] * 2 and all("the one before goes on" in each for each in said[2:])
    with pytest.raises(ValueError, match="closed"):
        stub.Stat(StatRequest(digest="0" * 64))


def test_a_call_without_a_deadline_has_the_settings(server: tuple[str, Scoring]) -> None:
    server[1].error = None
    with channel(server[0], ClientSettings(timeout=0.2)) as hurried, pytest.raises(Unavailable, match="SFUMATO_CLIENT_TIMEOUT"), calling():
        scoring_pb2_grpc.ScoringServiceStub(hurried).ListMetrics(scoring_pb2.ListMetricsRequest())


def test_a_connection_that_fails_says_what_to_check(tmp_path: Path, store: ArtifactStore, server: tuple[str, Scoring]) -> None:
    files = Certificates(tmp_path)
    tls = {"tls_certificate": files.certificate("server"), "tls_key": files.key("server")}
    web = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=web.serve_forever, args=(0.05,))
    thread.start()
    try:
        with serving(store, **tls) as (secure, _):
            for address, settings, words in (
                (f"tls://{server[0]}", NOTHING, "speaks no TLS"),
                (secure, NOTHING, "require TLS"),
                (f"tls://{secure}", NOTHING, "SFUMATO_CLIENT_CA"),
                (f"127.0.0.1:{web.server_port}", NOTHING, "no gRPC service"),
                ("nowhere.invalid:7101", NOTHING, "name of the host|host of this name"),
                ("127.0.0.1:1", NOTHING, "Is it running"),
            ):
                with channel(address, settings) as opened, pytest.raises(Unavailable, match=words), calling(address):
                    ArtifactServiceStub(opened).Stat(StatRequest(digest="0" * 64))
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


@pytest.mark.parametrize(
    "address", ["", "localhost", "http://localhost:1", "localhost:x", "localhost:70000", "h\u00f6st:1", "a b:1", "::1:5"]
)
def test_what_is_no_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(InvalidInput, match="address: .*must"):
        channel(address, NOTHING)
