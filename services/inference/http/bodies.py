"""Reads request bodies: media type and size, JSON, and multipart forms as OpenAI's clients write them."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from services.inference.http.errors import RequestRefused
from services.inference.http.schemas import EditRequest, GenerationRequest
from sfumato.errors import InvalidInput
from sfumato.runtime.images import MAX_BYTES

MOST_FIELDS, LONGEST_FIELD = 400, 1_000_000
"""Maximum number of form fields that are not files, and maximum bytes of one."""
IMAGE_FIELDS = ("image", "image[]")
_REGION = re.compile(r"regions\[\]\[(prompt|strength|bbox)\](\[\])?")

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, eq=False)
class EditForm:
    """The form of ``POST /v1/images/edits``: its fields, and the bytes of its files."""

    fields: EditRequest
    image: bytes
    mask: bytes | None

    def fingerprint(self) -> str:
        """A digest of all fields and files."""
        return _digest(self.fields, self.image, self.mask or b"")


async def read_generation(request: Request, most: int) -> GenerationRequest:
    """A request's JSON body of at most ``most`` bytes.

    Raises:
        RequestRefused: 415, its header names another media type; 413, it is larger.
        ValidationError: it is not JSON, or does not fit the schema.
    """
    _expect(request, "application/json")
    return GenerationRequest.model_validate_json((await _bounded(request, most).body()).removeprefix(codecs.BOM_UTF8))


async def read_edit(request: Request, most: int) -> EditForm:
    """A request's multipart form of at most ``most`` bytes. Regions are one field of JSON, or fields ``regions[][prompt]``.

    Raises:
        RequestRefused: 415, its header names another media type; 413, it is larger; 400, it cannot be read.
        InvalidInput: a file is too large, or there are several.
        ValidationError: its fields do not fit the schema.
    """
    _expect(request, "multipart/form-data")
    try:
        async with _bounded(request, most).form(max_files=20, max_fields=MOST_FIELDS, max_part_size=LONGEST_FIELD) as form:
            image = await _file(form, *IMAGE_FIELDS)
            mask = await _file(form, "mask")
            fields = _fields(form)
    except (MultiPartException, MultipartParseError) as error:
        raise RequestRefused(400, f"The form cannot be read: {error}", "invalid_form") from error
    except HTTPException as error:  # Starlette converts the first into this one within an application
        raise RequestRefused(400, f"The form cannot be read: {error.detail}", "invalid_form") from error
    # Validated as strings: form values become numbers, but 1.5 is not an integer.
    edit = EditRequest.model_validate_strings(fields, strict=False) if not fields.get("regions") else _with_regions(fields)
    if image is None:
        raise RequestRefused(400, "image: is required.", "missing_required_parameter", "image")
    return EditForm(edit, image, mask)


def fingerprint(fields: BaseModel) -> str:
    """A digest of a body without files."""
    return _digest(fields)


def _bounded(request: Request, most: int) -> Request:
    """The request with its body limited to ``most`` bytes, independently of its header.

    Raises:
        RequestRefused: 413, its header names more; reading more raises the same.
    """
    told, read = request.headers.get("content-length", ""), 0
    refusal = RequestRefused(413, f"The body is larger than {most} bytes.", "request_too_large")
    if told.isdigit() and int(told[:20]) > most:
        raise refusal

    async def receive() -> Message:
        nonlocal read
        message = await request.receive()
        read += len(message.get("body", b""))
        if read > most:
            raise refusal
        return message

    return Request(request.scope, receive)


def _expect(request: Request, kind: str) -> None:
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != kind:
        message = f"This takes {kind}, not {found[:60] or 'a body of no kind'}: set the header Content-Type."
        raise RequestRefused(415, message, "unsupported_media_type", "Content-Type")


async def _file(form: FormData, *names: str) -> bytes | None:
    """The bytes of the one file under any of the names; a browser's input in which no file was chosen counts as absent."""
    entries = [entry for name in names for entry in form.getlist(name)]
    files = [entry for entry in entries if not (isinstance(entry, UploadFile) and not entry.filename and not entry.size)]
    if not files:
        return None
    field = names[0]
    if len(files) > 1:
        raise InvalidInput(field, f"{len(files)} files are too many.", hint="This model starts from one picture.")
    (file,) = files
    if not isinstance(file, UploadFile):
        raise InvalidInput(field, "must be a file.", hint="Send it as a part with filename=, not filename*= (RFC 7578, 4.2).")
    data = await file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidInput(field, f"is larger than {MAX_BYTES // 1_000_000} MB.", hint="Bring a smaller file.")
    return data


def _fields(form: FormData) -> dict[str, Any]:
    """The form's fields that are not files, each at most once; regions in bracket notation are assembled."""
    found: dict[str, Any] = {}
    spread: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in (*IMAGE_FIELDS, "mask"):
                raise RequestRefused(400, f"{name[:100]}: there is no such file.", "unknown_parameter", name[:100])
        elif match := _REGION.fullmatch(name):
            spread.setdefault(match[1], []).append(value)
        elif name in found:
            raise InvalidInput(name[:100], "is there twice.")
        else:
            found[name] = value
    if spread:
        found["regions"] = _gathered(spread)
    return found


def _gathered(spread: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Regions from all prompts, the sides of all boxes, and the strengths of all or none of them."""
    prompts, numbers, strengths = (spread.get(name, []) for name in ("prompt", "bbox", "strength"))
    if len(numbers) != 4 * len(prompts) or len(strengths) not in (0, len(prompts)):
        raise InvalidInput("regions", "each needs a prompt and a bbox of four numbers.", hint="Or send them as one field of JSON.")
    regions: list[dict[str, Any]] = []
    for index, prompt in enumerate(prompts):
        region: dict[str, Any] = {"prompt": prompt, "bbox": numbers[4 * index : 4 * index + 4]}
        regions.append(region | ({"strength": strengths[index]} if strengths else {}))
    return regions


def _with_regions(fields: dict[str, Any]) -> EditRequest:
    """The fields with their regions, which may still be JSON text."""
    regions = fields["regions"]
    if isinstance(regions, str):
        try:
            regions = json.loads(regions)
        except (ValueError, RecursionError) as error:
            raise RequestRefused(400, "regions: is not JSON.", "invalid_json", "regions") from error
    plain = EditRequest.model_validate_strings({name: value for name, value in fields.items() if name != "regions"}, strict=False)
    return EditRequest.model_validate(plain.model_dump(exclude_unset=True) | {"regions": regions}, strict=False)


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def _digest(fields: BaseModel, *files: bytes) -> str:
    return sha256(" ".join(map(sha256, (fields.model_dump_json(exclude_none=True).encode(), *files))).encode())
