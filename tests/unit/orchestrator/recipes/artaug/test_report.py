"""The page a run ends in: whole, self-contained, and there for runs of every outcome."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.recipes.artaug.report import charts, pictures, report_files
from orchestrator.recipes.artaug.state import KEPT, State
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png
from tests.unit.orchestrator import states

VOID = {"meta", "img", "br", "rect", "link"}


class _Page(HTMLParser):
    """Checks that what is opened is closed, and gathers what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.boxes = 0
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.boxes += values.get("class", "").startswith("box")
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.ids |= {values["id"]} if "id" in values else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def _written(folder: Path, build: Callable[[ArtifactStore], State], judged: Any = states.JUDGED) -> tuple[_Page, dict[str, Any]]:
    store = ArtifactStore(str(folder / "artifacts"))
    files = report_files(states.plan(), replace(build(store), judged=judged), store)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return _Page(files["report.html"].decode()), json.loads(files["report.json"])


def test_the_page_needs_nothing_from_outside_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    page, _ = _written(tmp_path, states.finished)
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert not re.search(r"https?://", page.text)


def test_the_page_shows_tables_pairs_and_their_advice(tmp_path: Path) -> None:
    page, figures = _written(tmp_path, states.finished)
    for words in ("Table 1", "Table 2", "57.78", "47.15", "trained", "CLIP fell", "a glowing <house>", "iteration 2", "too few pairs"):
        assert words in page.text, words
    assert f"{figures['evaluation']['pickscore_win']:.2f}" in page.text
    assert page.boxes == 2 * 3 * 3  # two regions on three pairs with both pictures in each of three iterations


@pytest.mark.parametrize(
    ("build", "judged"),
    [
        (states.at_once, {"base": states.JUDGED["base"]}),
        (states.at_once, None),
        (states.no_gain, None),
        (states.without_advice, None),
        (states.finished, None),
        (lambda store: replace(states.finished(store, iterations=1), naive=None), states.JUDGED),
    ],
    ids=["stopped-at-once", "stopped-at-once-unjudged", "no-gain", "no-advice", "unjudged", "one-iteration-no-comparison"],
)
def test_odd_runs_have_a_page_too(tmp_path: Path, build: Callable[[ArtifactStore], State], judged: Any) -> None:
    page, figures = _written(tmp_path, build, judged)
    assert ("Nothing was fused" in page.text) == (figures["evaluation"]["tuned"] is None)
    assert ("independent judge sees" in page.text) == (judged is not None)
    assert ("not compared" in page.text) == (figures["comparison"] is None)
    assert "None" not in page.text.split("Spec, seeds and versions")[0]


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _written(tmp_path / name, states.finished)
    for file in ("report.html", "report.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_charts_bear_missing_values_and_single_points() -> None:
    for rows in ({"X": [1.0, None, 3.0]}, {"X": [None, None, None]}):
        assert charts.curves([1, 2, 3], rows).startswith("data:image/svg+xml;base64,")
    assert charts.curves([1], {"": [2.0]}) == charts.curves([1], {"": [2.0]})


def test_shown_are_trained_pairs_first_and_then_one_of_every_kind_that_was_removed(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    first = states.finished(store).iterations[0]
    assert first.attempt is not None
    samples = [replace(states.sample(index % 3, KEPT, store=store), seed=index) for index in range(20)]
    refused = [replace(states.sample(0, verdict, store=store), seed=90) for verdict in ("aesthetic",) * 5 + ("clip", "vlm_review")]
    attempt = replace(first.attempt, pairs=tuple(samples[5:8]))
    shown = pictures.pairs(replace(first, samples=tuple(samples + refused), attempt=attempt), store)
    assert [pair["verdict"] for pair in shown] == ["trained"] * 3 + [KEPT] * 5 + ["aesthetic", "clip", "vlm_review", "aesthetic"]


def test_large_pictures_are_shown_smaller(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    noise = np.random.default_rng(0).integers(0, 255, (900, 600, 3), dtype=np.uint8)
    large = replace(states.sample(0, KEPT, store=store), seed=1)
    assert large.before is not None
    large = replace(large, before=replace(large.before, picture=store.put(encode_png(noise))))
    iteration = replace(states.finished(store).iterations[-1], samples=(large,))
    [pair] = pictures.pairs(iteration, store)
    assert pair["before"].startswith("data:image/jpeg")
    assert len(pair["before"]) < 400_000
