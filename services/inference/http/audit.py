"""The audit log: one line of JSON for every parsed request, with its key's name and its result. It contains no key and no picture."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, TextIO

import structlog

from services.inference.http.schemas import ImageFields

_LEFT_OUT = {"prompt", "negative_prompt", "regions", "user", "safety_identifier"}


class AuditLog:
    """Writes to a file, or to the process's log."""

    def __init__(self, path: Path | None = None, prompts: bool = False) -> None:
        """``prompts``: whether prompts are written; else their SHA-256, so that equal prompts can be recognised."""
        self._prompts = prompts
        self._file: TextIO | None = None
        if path is None:
            self._log: Any = structlog.stdlib.get_logger("sfumato.audit")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(self._file),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.EventRenamer("message"),
                structlog.processors.JSONRenderer(),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        )

    def tell(self, event: str, fields: ImageFields | None, **words: Any) -> None:
        """Write one line: the event, the request's fields, and further values; values of None are left out."""
        told = {} if fields is None else self._asked(fields)
        self._log.info(event, **told, **{name: word for name, word in words.items() if word is not None})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _asked(self, fields: ImageFields) -> dict[str, Any]:
        told = fields.model_dump(exclude_none=True, exclude=_LEFT_OUT)
        words = {"prompt": fields.prompt, "negative_prompt": fields.negative_prompt}
        for index, region in enumerate(fields.regions or ()):
            words[f"regions[{index}].prompt"] = region.prompt
        for name, text in words.items():
            if text:
                told |= {name: text} if self._prompts else {f"{name}_sha256": digest(text)}
        if who := fields.safety_identifier or fields.user:
            told["safety_identifier_sha256"] = digest(who)
        return told


def digest(text: str) -> str:
    """The SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
