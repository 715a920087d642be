"""What a backup holds comes back: a registry in use and the store beside it, by the script and by what it calls."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from deploy.manifests import ROOT
from services.registry import copying, migrate
from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.runtime.artifacts import ArtifactStore
from tests.unit.services.registry.samples import register

# In the place of kubectl: what would be executed in a container of the cluster is executed here, on this folder.
EXECUTING = """#!/usr/bin/env bash
while [ "$1" != "--" ]; do shift; done
shift
exec "${@//\\/var\\/lib\\/sfumato/$PLACE}"
"""


def _environment(place: Path, python: Path) -> dict[str, str]:
    path = f"{python}:{os.environ['PATH']}"
    given = {"SFUMATO_REGISTRY_URL": f"sqlite:///{place / 'registry.sqlite'}", "PLACE": str(place), "PYTHONPATH": str(ROOT), "PATH": path}
    return os.environ | given | {"KUBECTL": str(place.parent / "kubectl")}


def _backup(what: str, place: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    kubectl = place.parent / "kubectl"
    kubectl.write_text(EXECUTING)
    kubectl.chmod(0o755)
    line = [str(ROOT / "deploy" / "backup.sh"), what, "art", str(folder)]
    return subprocess.run(line, env=_environment(place, Path(sys.executable).parent), capture_output=True, text=True, check=True)


def _opened(place: Path) -> Registry:
    (place / "artifacts").mkdir(parents=True, exist_ok=True)
    return Registry(Database(f"sqlite:///{place / 'registry.sqlite'}"), ArtifactStore(str(place / "artifacts")))


def test_a_registry_and_its_artifacts_are_saved_in_use_and_brought_back_elsewhere(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "backup"
    with closing(_opened(here)) as registry:
        kept = register(registry, 1)
        registry.set_alias("production", kept.id, expected="", reason="good")
        _backup("save", here, folder)
        register(registry, 2)  # what comes after is not in it
    with closing(_opened(there)) as other:
        register(other, 3)
    _backup("load", there, folder)
    with closing(_opened(there)) as other:
        assert [version.id for version in other.list(limit=10).versions] == [kept.id]
        assert other.resolve("production") == kept.id
        assert ArtifactStore(str(there / "artifacts")).get(kept.parts[0].adapter)


def test_what_is_no_copy_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(_opened(tmp_path)) as registry:
        kept = register(registry, 1)
    monkeypatch.setenv("SFUMATO_REGISTRY_URL", f"sqlite:///{tmp_path / 'registry.sqlite'}")
    with (tmp_path / "nonsense").open("wb+") as nonsense:
        nonsense.write(b"nonsense")
        nonsense.seek(0)
        with pytest.raises(Exception, match="no SQLite database"):
            copying.load(os.environ["SFUMATO_REGISTRY_URL"], nonsense)
    with closing(_opened(tmp_path)) as registry:
        assert registry.get(kept.id)
    monkeypatch.setenv("SFUMATO_REGISTRY_URL", "postgresql://nobody@nowhere/nothing")
    assert copying.main(["save"]) == 2 and "pg_dump" in capsys.readouterr().err


def test_the_hook_migrates_and_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_REGISTRY_URL", f"sqlite:///{tmp_path / 'new' / 'registry.sqlite'}")
    assert migrate.main() == 0 == migrate.main()  # again is safe
    monkeypatch.setenv("SFUMATO_REGISTRY_URL", "mysql://somewhere")
    assert migrate.main() == 2
    monkeypatch.setenv("SFUMATO_REGISTRY_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    assert migrate.main() == 1
