"""The registry's adapters on every kind of artifact store, S3 against a server that speaks it."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights
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


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, f"{'0' * 64}\n", "/" + "0" * 63])
def test_no_digest_leads_out_of_the_store(tmp_path: Path, digest: str) -> None:
    store = ArtifactStore(str(tmp_path))
    for ask in (store.get, store.holds, store.delete):
        with pytest.raises(InvalidInput, match="digest"):
            ask(digest)
