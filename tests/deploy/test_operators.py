"""The operators' guide says what is so: its numbers, its names, its commands."""

from __future__ import annotations

import json
import re

import pytest

from deploy import sizing
from deploy.manifests import CHART, ROOT
from tests.deploy.charts import of, rendered

GUIDE = (ROOT / "docs" / "operators.md").read_text()
STEPS = {"vista": (20, 1), "sd15": (30, 2), "sdxl": (30, 2), "flux1-dev": (30, 1)}
"""Steps, and rows of the denoiser for a picture in one of them."""


def _row(name: str) -> list[str]:
    (line,) = [line for line in GUIDE.splitlines() if line.startswith(f"| {name}")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


@pytest.mark.parametrize(("column", "model"), list(enumerate(sizing.MODELS)))
def test_the_table_of_sizes_is_counted(column: int, model: str) -> None:
    millions = [float(number) for number in _row("denoiser, text")[column].split(", ")]
    counted = [count / 1e6 for count in sizing.counted(model).values()]
    assert millions == [round(count, 1 if model == "vista" else None) for count in counted]
    each = 4 if model == "vista" else 2
    assert float(_row("weights")[column]) == round(sizing.gigabytes(model, each), 2 if model == "vista" else 1)
    steps, rows = STEPS[model]
    assert _row("steps, forwards")[column] == f"{steps}: {steps * rows}, {steps * (rows + 5)}"


def test_what_it_names_is_there() -> None:
    for path in re.findall(r"(?:deploy|helm|docs|tests)/[\w./-]*\w", GUIDE):
        assert (ROOT / path).exists(), path
    for preset in re.findall(r"values-[\w-]+\.yaml", GUIDE):
        assert (CHART / preset).is_file(), preset
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", GUIDE, re.MULTILINE)) - {"test"} <= set(targets)
    (rules,) = of(rendered("flux1-dev"), "PrometheusRule")
    assert set(re.findall(r"`(Sfumato\w+)`", GUIDE)) == {rule["alert"] for rule in rules["spec"]["groups"][0]["rules"]}


def test_every_value_it_names_is_a_value() -> None:


    schema = json.loads((CHART / "values.schema.json").read_text())

    def known(path: list[str], at: dict) -> bool:
        at = schema["definitions"][at["$ref"].rpartition("/")[2]] if "$ref" in at else at
        return not path or (path[0] in at.get("properties", {}) and known(path[1:], at["properties"][path[0]]))

    roots = set(schema["properties"])
    named = [name for name in re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)+)(?:: [\w-]+)?`", GUIDE) if name.split(".")[0] in roots]
    assert len(named) > 12
    for name in named:
        assert known(name.split("."), schema), name
