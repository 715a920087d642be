"""The registry's adapters on every kind of artifact store, S3 against a server that speaks it."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights, NotFound
from sfumato.runtime.artifacts import ArtifactStore
from tests.unit.services.registry.samples import adapter, register
from tests.unit.services.registry.servers import s3


@pytest.fixture(params=["folder", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store's URL."""
    if request.param != "s3":
        (tmp_path / "store").mkdir()
        yield f"file://{tmp_path}/store" if request.param == "file" else str(tmp_path / "store")
        return
    with s3("sfumato-test") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield "s3://sfumato-test/artifacts"


def test_a_version_lives_in_any_store_and_is_collected_from_it(place: str, template: Path, tmp_path: Path) -> None:
    store = ArtifactStore(place)
    with closing(Registry(Database(f"sqlite:///{shutil.copy(template, tmp_path)}"), store)) as registry:
        kept, lost = register(registry, 1), register(registry, 2)
        registry.set_alias("production", kept.id, expected="")
        assert registry.adapter(adapter(2)[0]) == adapter(2)[1]
        store.write_key("manifests/aa/one.json", b'{"files": {}}')
        assert list(store.keys("manifests/")) == ["manifests/aa/one.json"]
        assert registry.collect(older_than=0, dry_run=False).versions == (lost.id,)
        with pytest.raises(MissingWeights):
            registry.adapter(adapter(2)[0])
        assert registry.adapter(adapter(1)[0]) == adapter(1)[1]
        store.write_key(f"blobs/{adapter(1)[0][:2]}/{adapter(1)[0]}", b"damaged")
        with pytest.raises(BrokenWeights, match="damaged"):
            registry.adapter(adapter(1)[0])


def test_an_object_is_replaced_at_once_or_not_at_all_even_by_a_writer_that_is_killed(place: str) -> None:
    """Another process replaces one object again and again, by other bytes each time, until it is killed in the middle of it."""
    script = f"""
from sfumato.runtime.artifacts import ArtifactStore
store, contents = ArtifactStore({place!r}), [letter * 2_000_000 for letter in (b"a", b"b")]
while True:
    for content in contents:
        store.write_key("runs/x.json", content)
        print("written", flush=True)
"""
    store = ArtifactStore(place)
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "written\n"
    try:
        seen = {store.read_key("runs/x.json") for _ in range(40)}
    finally:
        writer.kill()
        writer.communicate()
    seen.add(store.read_key("runs/x.json"))
    assert seen <= {b"a" * 2_000_000, b"b" * 2_000_000}
    assert list(store.keys("runs/")) == ["runs/x.json"]


def test_what_is_registered_while_others_collect_has_its_files(database_url: str, store: ArtifactStore) -> None:
    with closing(Registry(Database(database_url), store)) as registry, closing(Registry(Database(database_url), store)) as other:
        over = threading.Event()

        def collect() -> None:
            while not over.wait(0.01):
                other.collect(older_than=0, dry_run=False)

        collector = threading.Thread(target=collect)
        collector.start()
        try:
            for number in range(12):
                try:
                    version = register(registry, number % 3)  # the same ones come again and again, and go
                    registry.set_alias(f"keep-{number}", version.id, expected="")
                except NotFound:
                    continue  # it was collected before anybody pointed at it
                assert [store.get(part.adapter) for part in registry.get(version.id).parts]
        finally:
            over.set()
            collector.join()
        kept = {part.adapter for version in registry.list().versions for part in version.parts}
        assert all(store.get(digest) for digest in kept)
        assert {key.rpartition("/")[2] for key in store.keys("blobs/")} <= {adapter(seed)[0] for seed in range(3)}


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, f"{'0' * 64}\n", "/" + "0" * 63])
def test_no_digest_leads_out_of_the_store(tmp_path: Path, digest: str) -> None:
    store = ArtifactStore(str(tmp_path))
    for ask in (store.get, store.holds, store.delete):
        with pytest.raises(InvalidInput, match="digest"):
            ask(digest)
