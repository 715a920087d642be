"""What is read of requests, and what is refused with the parameter's name."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from services.inference.http.bodies import EditForm, read_edit, read_generation
from services.inference.http.errors import RequestRefused, told
from services.inference.http.schemas import EditRequest, GenerationRequest

PNG = b"\x89PNG\r\n\x1a\n any bytes: a form's files are not looked at here"


def request_of(body: bytes, kind: str, *, length: int | None = None) -> Request:
    headers = [(b"content-type", kind.encode())] + ([(b"content-length", str(length).encode())] if length is not None else [])
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)] or [b""]

    async def receive() -> Message:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    return Request({"type": "http", "method": "POST", "headers": headers, "path": "/"}, receive)


def generation(body: Any, kind: str = "application/json", most: int = 2_000_000) -> GenerationRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(read_generation(request_of(data, kind), most))


def edit(parts: list[tuple[str, bytes, str]], kind: str = "multipart/form-data; boundary=b", most: int = 3_000_000) -> EditForm:
    body = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"{f"; filename={file}" if file else ""}\r\n\r\n'.encode() + data + b"\r\n"
        for name, data, file in parts
    )
    return asyncio.run(read_edit(request_of(body + b"--b--\r\n", kind), most))


def refusal(call: Any, *args: Any, **more: Any) -> RequestRefused:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (whatever it is, it is told of below)
        call(*args, **more)
    return told(caught.value)


@pytest.mark.parametrize(
    ("body", "parameter", "code"),
    [
        ({}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "empty_string"),
        ({"prompt": "x" * 1_000_000}, "prompt", "string_above_max_length"),
        ({"prompt": 7}, "prompt", "invalid_type"),
        ({"prompt": "x", "n": 0}, "n", "integer_below_min_value"),
        ({"prompt": "x", "n": 11}, "n", "integer_above_max_value"),
        ({"prompt": "x", "n": "2"}, "n", "invalid_type"),
        ({"prompt": "x", "n": True}, "n", "invalid_type"),
        ({"prompt": "x", "size": "huge"}, "size", "invalid_value"),
        ({"prompt": "x", "size": "64x64x64"}, "size", "invalid_value"),
        ({"prompt": "x", "seed": 2**63}, "seed", "integer_above_max_value"),
        ({"prompt": "x", "style": "noir"}, "style", "invalid_value"),
        ({"prompt": "x", "response_format": "url"}, "response_format", "invalid_value"),
        ({"prompt": "x", "output_format": "gif"}, "output_format", "invalid_value"),
        ({"prompt": "x", "partial_images": 4}, "partial_images", "integer_above_max_value"),
        ({"prompt": "x", "cfg": 7}, "cfg", "unknown_parameter"),
        ({"prompt": "x", "regions": [{"prompt": "y", "bbox": [0, 0, 1]}]}, "regions[0].bbox", "invalid_value"),
        ({"prompt": "x", "regions": [{"prompt": "y", "bbox": [0, 0, 1, "1"]}]}, "regions[0].bbox[3]", "invalid_type"),
        ({"prompt": "x", "regions": [{"bbox": [0, 0, 1, 1]}]}, "regions[0].prompt", "missing_required_parameter"),
        (b'{"prompt": "x", "guidance_scale": NaN}', "guidance_scale", "invalid_value"),
        (b'{"prompt": "x"', None, "invalid_json"),
        (b"", None, "invalid_json"),
        (b"[]", None, "invalid_type"),
        (b'{"prompt": "\\ud800"}', None, "invalid_json"),
        (b"\xff\xfe", None, "invalid_json"),
        (b"[" * 100_000, None, "invalid_json"),
    ],
)
def test_a_body_that_cannot_be_used_is_refused_by_its_parameter(body: Any, parameter: str | None, code: str) -> None:
    refused = refusal(generation, body)
    assert (refused.status, refused.param, refused.code) == (400, parameter, code), refused
    assert len(refused.message) < 500 and (parameter or "") in refused.message


def test_null_is_as_good_as_absent_and_openais_own_fields_are_taken() -> None:
    every = {name: None for name in GenerationRequest.model_fields if name != "prompt"}
    assert generation({"prompt": "x", **every}) == generation({"prompt": "x"})
    asked = generation({"prompt": "x", "quality": "hd", "style": "vivid", "moderation": "low", "user": "u", "background": "auto"})
    assert asked.steps(20, 100) == 30 and asked.steps(90, 100) == 100 and generation({"prompt": "x"}).steps(20, 100) == 20


def test_another_kind_of_body_and_one_that_is_too_large_are_refused_unread() -> None:
    assert refusal(generation, {"prompt": "x"}, kind="text/plain").status == 415
    assert refusal(generation, {"prompt": "x"}, kind="").status == 415
    assert refusal(edit, [], kind="application/json").status == 415
    assert refusal(generation, b" " * 300_000, most=200_000).status == 413
    assert refusal(edit, [("image", b"x" * 3_500_000, "a.png")]).status == 413
    told_by_header = request_of(b"{}", "application/json", length=10**30)
    assert refusal(asyncio.run, read_generation(told_by_header, 100)).status == 413


def test_a_form_has_the_same_fields_as_json_in_words() -> None:
    fields = [("prompt", b"a moon", ""), ("n", b"2", ""), ("guidance_scale", b"3.5", ""), ("stream", b"true", ""), ("size", b"64x64", "")]
    read = edit([*fields, ("image", PNG, "a.png"), ("mask", b"mask", "m.png"), ("regions", b'[{"prompt":"y","bbox":[0,0,1,1]}]', "")])
    assert (read.fields.n, read.fields.guidance_scale, read.fields.stream) == (2, 3.5, True)
    assert read.fields.regions is not None and read.fields.regions[0].bbox == [0, 0, 1, 1]
    assert (read.image, read.mask) == (PNG, b"mask")
    spread = [("regions[][prompt]", b"y", ""), *(("regions[][bbox][]", side, "") for side in (b"0", b"0", b"1", b"1"))]
    again = edit([*fields, ("image[]", PNG, "b.png"), ("mask", b"mask", "m.png"), *spread])  # as the official clients write them
    assert again.fields == read.fields and again.fingerprint() == read.fingerprint()
    assert edit([*fields, ("image", PNG + b"!", "a.png")]).fingerprint() != read.fingerprint()


@pytest.mark.parametrize(
    ("parts", "parameter"),
    [
        ([("prompt", b"x", "")], "image"),
        ([("image", PNG, "a.png")], "prompt"),
        ([("prompt", b"x", ""), ("image", PNG, "")], "image"),
        ([("prompt", b"x", ""), ("image", PNG, "a.png"), ("image", PNG, "b.png")], "image"),
        ([("prompt", b"x", ""), ("image", PNG, "a.png"), ("n", b"1.5", "")], "n"),
        ([("prompt", b"x", ""), ("prompt", b"y", ""), ("image", PNG, "a.png")], "prompt"),
        ([("prompt", b"x", ""), ("image", PNG, "a.png"), ("strength", b"nan", "")], "strength"),
        ([("prompt", b"x", ""), ("image", PNG, "a.png"), ("regions", b"[" * 90_000, "")], "regions"),
        ([("prompt", b"x", ""), ("image", PNG, "a.png"), ("regions[][prompt]", b"y", "")], "regions"),
        ([("prompt", b"x", ""), ("image", PNG, "a.png"), ("virus", PNG, "a.exe")], "virus"),
        ([("prompt", b"x", ""), ("image", b"0" * 20_000_001, "a.png")], "image"),
    ],
)
def test_a_form_that_cannot_be_used_is_refused_by_its_parameter(parts: list[tuple[str, bytes, str]], parameter: str) -> None:
    refused = refusal(edit, parts, most=50_000_000)
    assert (refused.status, refused.param) == (400, parameter), refused


def form_with_file(disposition: bytes, data: bytes, *more: bytes) -> EditForm:
    """A form whose image has these further parameters and headers; ``more`` are whole parts."""
    parts = (b'name="prompt"\r\n\r\nx', b'name="image"; ' + disposition + b"\r\n\r\n" + data, *more)
    body = b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return asyncio.run(read_edit(request_of(body, "multipart/form-data; boundary=b"), 100_000))


@pytest.mark.parametrize(
    "disposition",
    [
        b'filename="a.png"',
        b"filename=a.png",
        b'filename=""',
        'filename="\N{CRESCENT MOON}.png"'.encode(),
        b'filename="\xff\xfe.png"',
        b'filename="../../etc/passwd"',
        b'filename="C:\\a.png"',
        b'filename="a\0b\x1b.png"',
        b'filename="a\\".png"',
        b"filename=\"a.png\"; filename*=UTF-8''%e2%82%ac.png",
        b'filename="a.png"\r\nContent-Type: text/html',
        b'filename="a.png"\r\nContent-Type: image/gif',
        b'filename="a.png"\r\nContent-Type: \xff\xfe',
    ],
)
def test_a_files_name_and_kind_are_not_looked_at(disposition: bytes) -> None:
    assert form_with_file(disposition, PNG).image == PNG


def test_a_file_that_was_not_chosen_is_absent_and_an_empty_one_is_not() -> None:
    unchosen = b'name="mask"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n'
    assert form_with_file(b'filename="a.png"', PNG, unchosen).mask is None
    assert refusal(form_with_file, b'filename=""', b"").param == "image"
    assert form_with_file(b'filename="a.png"', b"").image == b""  # is no picture, which the decoder says
    assert form_with_file(b'filename="a.png"', PNG, unchosen.replace(b'""', b'"m.png"')).mask == b""


@pytest.mark.parametrize("disposition", [b"filename*=UTF-8''%e2%82%ac.png", b"filename*=UTF-8''%ff", b"filename*=bogus'x", b"", b"x=y"])
def test_a_part_without_a_plain_file_name_is_no_file(disposition: bytes) -> None:
    refused = refusal(form_with_file, disposition, PNG)
    assert (refused.status, refused.param) == (400, "image") and "filename=" in refused.message


def test_a_picture_as_text_and_a_name_without_end_are_refused() -> None:
    assert refusal(form_with_file, b"", b"iVBORw0KGgoAAAANSUhEUg==").param == "image"
    assert refusal(form_with_file, b'filename="' + b"x" * 50_000 + b'"', PNG).status == 400
    assert refusal(form_with_file, b'filename="a.png"', PNG, b'name="mask"\r\n\r\ndata:image/png;base64,iVBORw0KGgo=').param == "mask"


NAMELESS = b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"


@pytest.mark.parametrize("body", [b"", b"--b", b"nonsense", b"--b\r\n\r\n\r\n--b--", NAMELESS])
def test_a_form_that_is_none_is_refused(body: bytes) -> None:
    refused = refusal(asyncio.run, read_edit(request_of(body, "multipart/form-data; boundary=b"), 1000))
    assert refused.status == 400
    assert refusal(asyncio.run, read_edit(request_of(body, "multipart/form-data"), 1000)).status == 400


def test_every_field_is_described() -> None:
    for model in (GenerationRequest, EditRequest):
        assert set(model.model_json_schema()["properties"]) == set(model.model_fields)
