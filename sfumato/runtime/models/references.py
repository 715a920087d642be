"""The weights that a task means: a reference that every machine resolves, checked by the weights' version.

A reference is "vista", the models that come with the package; a name on the hub; or a folder, where folders are allowed
(``SFUMATO_MODEL_FOLDERS``): on one machine only, because a path is not valid on another, and clients must not name a server's folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from sfumato.errors import InvalidInput, MissingWeights, SfumatoError
from sfumato.runtime.models.builtin import BUILT_IN
from sfumato.runtime.models.hub import cached, is_hub_name, located
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.settings import Settings

VISTA = "vista"
JUDGE = "detector,judge"
"""What the independent judge is called: as `scorers_reference`."""


def vista_root(settings: Settings) -> Path:
    """Where Vista's models lie on this machine."""
    return (settings.weights or BUILT_IN[VISTA].root).resolve()


def model_folder(reference: str, part: str, settings: Settings) -> Path:
    """The folder of what a reference names; of Vista's models it is ``part``.

    Raises:
        InvalidInput: it is neither "vista" nor on the hub, and no folder either, or folders are not allowed here.
        MissingWeights, BrokenWeights: it is not here and cannot be fetched, or its files are damaged.
    """
    if reference == VISTA:
        return BUILT_IN[VISTA].locate(part, vista_root(settings))
    if not settings.model_folders and not is_hub_name(reference):
        hint = 'Write "vista" or OWNER/NAME; where folders are meant, set SFUMATO_MODEL_FOLDERS=true for the service.'
        raise InvalidInput("model", f"{reference!r} is no name on the hub, and this service takes no folders.", hint=hint)
    return located(reference)


def present_folder(reference: str, part: str, settings: Settings) -> Path | None:
    """The same, where it is on this machine already; None where it is not: nothing is fetched."""
    try:
        return BUILT_IN[VISTA].locate(part, vista_root(settings)) if reference == VISTA else cached(reference)
    except SfumatoError:
        return None


def checked_folder(reference: str, part: str, version: str, settings: Settings) -> Path:
    """The folder of a task's model, found once, and only if it holds the weights that the task means.

    Raises:
        InvalidInput, BrokenWeights: see `model_folder`.
        MissingWeights: what is here has another version.
    """
    folder, found = _found(reference, part, settings.weights, settings.model_folders)
    _compare(f"{reference} ({part})", found, version)
    return folder


@lru_cache(maxsize=8)
def _found(reference: str, part: str, root: Path | None, folders: bool) -> tuple[Path, str]:
    folder = model_folder(reference, part, Settings(weights=root, model_folders=folders))
    return folder, model_version(folder)


def scorers_reference(metrics: Iterable[str]) -> str:
    """What scorers are called: the metrics that their common version is made of. Which weights each has, a task's parameters say."""
    return ",".join(sorted({"clip", *metrics}))


def scorers_version(reference: str, models: Mapping[str, str], settings: Settings) -> str:
    """The version of all these metrics' weights: those that ``models`` names, Vista's, or none where a package brings its own.

    Raises:
        InvalidInput, MissingWeights, BrokenWeights: see `model_folder`.
    """
    lines = []
    for metric in reference.split(","):
        named = metric in models or metric in BUILT_IN[VISTA].parts
        lines.append(f"{metric} {model_version(model_folder(models.get(metric, VISTA), metric, settings)) if named else ''}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checked_scorers(reference: str, models: Mapping[str, str], version: str, settings: Settings) -> Path:
    """Where Vista's models lie, once it is known that the scorers here are those that the task means.

    Raises:
        InvalidInput, BrokenWeights: see `model_folder`.
        MissingWeights: what is here has another version.
    """
    found = _found_scorers(reference, tuple(sorted(models.items())), settings.weights, settings.model_folders)
    _compare(f"the scorers ({reference})", found, version)
    return vista_root(settings)


@lru_cache(maxsize=8)
def _found_scorers(reference: str, models: tuple[tuple[str, str], ...], root: Path | None, folders: bool) -> str:
    return scorers_version(reference, dict(models), Settings(weights=root, model_folders=folders))


def _compare(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise MissingWeights(
            f"The weights of {what} here have the version {found[:12]}, and the task means {wanted[:12]}.",
            hint="Give every worker the weights the run was begun with: the same package, or SFUMATO_WEIGHTS, or the same revision.",
        )
