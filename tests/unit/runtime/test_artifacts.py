"""The store gives back what was put, and nothing else."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.errors import Blocked, BrokenWeights, MissingWeights
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Output, Task, find, perform
from tests.unit.services.registry.servers import s3


def _task(**changes: object) -> Task:
    fields = {"stage": "s", "kind": "echo.say", "items": ("a", "b"), "params": {"x": 1}, "model": "m", "model_reference": "/here"}
    return Task.model_validate(fields | changes)


def test_bytes_come_back_under_their_sha256(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    digest = store.put(b"paint")
    assert store.get(digest) == b"paint"
    assert store.holds(digest)
    assert store.put(b"paint") == digest


def test_a_full_disk_is_an_error_and_finished_work_stays(tmp_path: Path) -> None:
    script = f"""
import resource
from sfumato.errors import Unavailable
from sfumato.runtime.artifacts import ArtifactStore
store = ArtifactStore({str(tmp_path)!r})
store.put(b"small")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no file may grow beyond this: the kernel refuses as on a full disk
try:
    store.put(bytes(5000))
except Unavailable as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "cannot be written" in said and "Make room" in said
    store = ArtifactStore(str(tmp_path))
    assert store.get(hashlib.sha256(b"small").hexdigest()) == b"small"
    assert not store.holds(hashlib.sha256(bytes(5000)).hexdigest())


def test_a_store_that_refuses_for_good_says_why(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    (tmp_path / "blobs").write_text("a file")
    for refused in (lambda: store.put(b"paint"), lambda: store.get("0" * 64), lambda: store.holds("0" * 64), lambda: store.size("0" * 64)):
        with pytest.raises(Blocked, match="artifact store .* cannot be (read|written): a file is in the place of a folder"):
            refused()


def test_a_bucket_that_does_not_exist_is_named() -> None:
    script = """
from sfumato.errors import Blocked
from sfumato.runtime.artifacts import ArtifactStore
try:
    ArtifactStore("s3://photos/x").write_key("a", b"b")
except Blocked as error:
    print(error)
"""
    with s3("pictures") as variables:
        command = [sys.executable, "-c", script]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | variables).stdout
    assert "s3://photos/x cannot be written: there is no bucket" in said and "Check the bucket's name" in said


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    digest = store.put(b"paint")
    (tmp_path / "blobs" / digest[:2] / digest).write_bytes(b"point")
    with pytest.raises(BrokenWeights):
        store.get(digest)


def test_an_absent_artifact_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights):
        ArtifactStore(str(tmp_path)).get("0" * 64)


def test_an_id_depends_on_what_the_result_depends_on_and_nothing_else() -> None:
    assert _task().id == _task(stage="other", model_reference="/elsewhere").id
    others = [_task(kind="echo.shout"), _task(items=("b", "a")), _task(params={"x": 2}), _task(model="n")]
    assert len({task.id for task in [_task(), *others]}) == 5


def test_a_task_is_done_once(tmp_path: Path) -> None:
    store, calls = ArtifactStore(str(tmp_path)), []

    def handler(task: Task, _: ArtifactStore) -> Output:
        calls.append(task.id)
        return Output([item.upper() for item in task.items], {"0.txt": b"A"})

    first = perform(_task(), handler, store, {"python": "3"})
    assert perform(_task(), handler, store, {}) == first == find(_task(), store)
    assert (first.values, len(calls), store.get(first.files["0.txt"])) == (["A", "B"], 1, b"A")
