"""Every setting has its line in the docs, and the docs name none that is not there."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from sfumato.runtime.settings import FiledSettings

ROOT = Path(__file__).parents[2]


def test_the_docs_name_every_setting_and_no_other() -> None:
    assert set(documented()) == set(settings())


def settings() -> Iterator[str]:
    """The variables of all the settings there are in the code."""
    for room in ("sfumato", "services", "orchestrator"):
        for file in (ROOT / room).rglob("*.py"):
            if "(FiledSettings)" in file.read_text():
                importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    classes = [each for each in FiledSettings.__subclasses__() if _ours(each)]
    assert len(classes) > 5
    for each in classes:
        yield from (f"{each.model_config.get('env_prefix', '')}{field}".upper() for field in each.model_fields)


def _ours(settings: type[FiledSettings]) -> bool:
    """Whether its variables are ours to document; a bucket's keys are called ``AWS_*`` everywhere."""
    room = settings.__module__.split(".")[0]
    return room in ("sfumato", "services", "orchestrator") and settings.model_config.get("env_prefix", "").startswith("SFUMATO_")


def documented() -> Iterator[str]:
    """The variables in the first column of the tables whose head names a prefix."""
    for page in (ROOT / "docs").rglob("*.md"):
        prefix = None
        for line in page.read_text().splitlines():
            first = line.split("|")[1] if line.startswith("|") else ""
            if head := re.search(r"`(SFUMATO_(?:[A-Z]+_)?)`", first):
                prefix = head[1]
            elif not first:
                prefix = None
            elif prefix is not None:
                yield from (prefix + name for name in re.findall(r"`([A-Z_]+)`", first))
