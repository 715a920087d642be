"""The methods by name: those of this package, and those that another package brings."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.recipes import catalog
from orchestrator.recipes.artaug import RECIPE
from sfumato.errors import InvalidInput

MODULE = "sfumato_method_of_another_package"
TEXT = """
from dataclasses import replace

from orchestrator.engine.stages import Barrier
from orchestrator.recipes.artaug import RECIPE as ARTAUG

PROBE = Barrier("probe", lambda plan, state: [], lambda plan, state, done: state, services=("prober",))
RECIPE = replace(ARTAUG, name="probing", stages=(PROBE,))
"""


@pytest.fixture
def another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution with a method of the name ``probing``."""
    (tmp_path / f"{MODULE}.py").write_text(TEXT)
    described = tmp_path / f"{MODULE}-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[sfumato.recipes]\nprobing = {MODULE}:RECIPE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop(MODULE, None)
    catalog.recipe_named.cache_clear()


def test_a_method_of_this_package_is_found_by_its_name() -> None:
    assert catalog.names()[0] == catalog.DEFAULT == "artaug"
    assert catalog.recipe_named("artaug") is RECIPE
    assert set(catalog.services()) >= {"generator", "grounding", "scoring", "trainer", "joint"}


def test_a_method_of_another_package_is_found_by_its_entry_point(another_package: None) -> None:
    assert "probing" in catalog.names()
    found = catalog.recipe_named("probing")
    assert (found.name, [stage.name for stage in found.steps], found.services) == ("probing", ["probe"], ("prober",))
    assert "prober" in catalog.services()


@pytest.mark.parametrize("name", ["painting", "", "orchestrator.recipes.artaug", "Artaug"])
def test_an_unknown_method_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"recipe: there is no method '{name}'.*The methods: artaug"):
        catalog.recipe_named(name)


def test_a_very_long_name_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidInput) as error:
        catalog.recipe_named("x" * 10_000)
    assert len(str(error.value)) < 300


def test_a_method_that_cannot_be_loaded_is_refused_and_keeps_no_other_from_working(another_package: None, tmp_path: Path) -> None:
    (tmp_path / f"{MODULE}.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(InvalidInput, match="the method probing cannot be loaded.*broken"):
        catalog.recipe_named("probing")
    assert "generator" in catalog.services()
    assert "artaug" in catalog.cards()
