"""The official `openai` client, unchanged, against the real service: pictures, edits, streams, errors, keys, retries, time limits."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image as Pillow
from sd_prompt_reader.image_data_reader import ImageDataReader

from sfumato.runtime.images import decode_image, encode_png
from sfumato.types import Image
from tests.integration.inference.serving import SECONDS, Serving, registry_with_a_version, serving

PROMPT = "a full moon over mountains and a lake at night"
KEYS = {"full": {}, "slow": {"rate": "2/5 second"}, "narrow": {"concurrency": 1}}
QUEUE = {"SFUMATO_INFERENCE_PICTURES": "2", "SFUMATO_INFERENCE_WAITING": "2"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("served")
    keys = [{"name": name, "sha256": hashlib.sha256(f"key-{name}".encode()).hexdigest(), **more} for name, more in KEYS.items()]
    (folder / "keys.json").write_text(json.dumps(keys))
    audit = {"SFUMATO_INFERENCE_AUDIT": str(folder / "audit.jsonl"), "SFUMATO_INFERENCE_SAFETY": "nudenet"}
    options = ("--keys", str(folder / "keys.json"))
    with registry_with_a_version(folder) as (address, version), serving(address, version, *options, **QUEUE, **audit) as running:
        running.audit = folder / "audit.jsonl"
        yield running
        assert running.end() == 0, "".join(running.log)


def client(served: Serving, key: str = "full", **options: Any) -> OpenAI:
    made = OpenAI(base_url=f"{served.url}/v1", api_key=f"key-{key}", **{"max_retries": 0, "timeout": SECONDS, **options})
    served.closing.append(made.close)
    return made


def files(answer: Any) -> list[bytes]:
    return [base64.b64decode(picture.b64_json) for picture in answer.data]


def pixels(file: bytes) -> Image:
    return decode_image(file)


def audited(served: Serving) -> list[dict[str, Any]]:
    return [json.loads(line) for line in served.audit.read_text().splitlines()]


def test_the_same_request_gives_the_same_files_which_say_how_they_were_made(served: Serving) -> None:
    ask = client(served).images.with_raw_response.generate
    raw = ask(prompt=PROMPT, n=2, extra_body={"seed": 7})
    answer = raw.parse()
    first, second = files(answer)
    assert raw.headers["x-sfumato-model-version"] == served.version == answer.version  # pyright: ignore[reportAttributeAccessIssue]
    assert [picture.seed for picture in answer.data or ()] == [7, 8] and first != second  # pyright: ignore[reportAttributeAccessIssue]
    assert (answer.size, answer.output_format, raw.headers["x-request-id"][:4]) == ("64x64", "png", "req_")
    again = files(client(served).images.generate(prompt=PROMPT, model="vista@production", extra_body={"seed": 7}))
    assert np.abs(pixels(again[0]).astype(int) - pixels(first)).max() <= 1  # alone now, in company before
    with Pillow.open(io.BytesIO(first)) as picture:
        assert picture.info["model_version"] == served.version
        words = picture.info["parameters"]
        assert words.startswith(f"{PROMPT}\nSteps: 20, Sampler: Euler, CFG scale: ") and "Seed: 7" in words


def test_the_adapters_weight_turns_what_was_learned_up_and_down(served: Serving) -> None:
    def painted(scale: float) -> Image:
        more = {"seed": 7, "num_inference_steps": 4, "adapter_scale": scale}
        return pixels(files(client(served).images.generate(prompt=PROMPT, extra_body=more))[0]).astype(int)

    base, half, fused, more = (painted(scale) for scale in (0, 0.5, 1, 2))
    assert 0 < np.abs(half - base).mean() < np.abs(fused - base).mean() < np.abs(more - base).mean()


def test_regions_formats_and_models_by_name(served: Serving) -> None:
    ask = client(served).images.generate
    steps = {"seed": 1, "num_inference_steps": 2}
    plain = files(ask(prompt=PROMPT, output_format="jpeg", extra_body=steps))[0]
    region = {"prompt": "a red house", "bbox": [0, 0, 32, 64], "strength": 2.0}
    advised = ask(prompt=PROMPT, output_format="jpeg", model=served.version[:12], extra_body=steps | {"regions": [region]})
    assert plain[:2] == b"\xff\xd8" and np.abs(pixels(files(advised)[0]).astype(int) - pixels(plain))[:, :32].mean() > 1
    models = list(client(served).models.list())
    assert [model.id for model in models] == ["vista", "vista@production"] and all(model.owned_by == "sfumato" for model in models)
    one = client(served).models.retrieve("vista@production")
    assert (one.root, one.version) == ("vista", served.version)  # pyright: ignore[reportAttributeAccessIssue]


def test_edits_start_from_a_picture_and_a_mask_keeps_the_rest(served: Serving) -> None:
    ask = client(served).images
    steps = {"seed": 3, "num_inference_steps": 6}
    start = files(ask.generate(prompt=PROMPT, extra_body={"seed": 7}))[0]
    near = files(ask.edit(image=start, prompt="a red house by day", extra_body=steps | {"strength": 0.0}))[0]
    far = files(ask.edit(image=[("a.png", start)], prompt="a red house by day", extra_body=steps | {"strength": 1.0}))[0]
    distances = [np.abs(pixels(each).astype(int) - pixels(start)).mean() for each in (near, far)]
    assert distances[0] < 8 < distances[1]
    alpha = np.zeros((64, 64, 4), np.uint8)
    alpha[:, :32, 3] = 255  # opaque on the left: kept
    file = io.BytesIO()
    Pillow.fromarray(alpha).save(file, format="PNG")
    regions = [{"prompt": "a tree", "bbox": [32, 0, 64, 64]}]
    more = steps | {"strength": 1.0, "regions": regions}
    masked = pixels(files(ask.edit(image=start, mask=file.getvalue(), prompt="a red house by day", extra_body=more))[0])
    change = np.abs(masked.astype(int) - pixels(start)).mean(axis=(0, 2))
    assert change[:30].mean() < 8 < change[34:].mean()
    large = encode_png(np.kron(pixels(start), np.ones((3, 3, 1), np.uint8)))
    assert ask.edit(image=large, prompt=PROMPT, size="64x64", extra_body=steps).size == "64x64"


def test_a_hole_in_the_picture_is_painted_and_the_rest_stays(served: Serving) -> None:
    ask = client(served).images
    start = files(ask.generate(prompt=PROMPT, extra_body={"seed": 7}))[0]
    cut_out = np.dstack([pixels(start), np.full((64, 64), 255, np.uint8)])
    cut_out[:, 32:] = 0
    file = io.BytesIO()
    Pillow.fromarray(cut_out).save(file, format="PNG")
    answer = ask.edit(image=file.getvalue(), prompt="a red house by day", extra_body={"seed": 3, "num_inference_steps": 6})
    painted = pixels(files(answer)[0]).astype(int)
    change = np.abs(painted - pixels(start)).mean(axis=(0, 2))
    assert change[:30].mean() < 8 < change[34:].mean()
    assert (painted[:, 34:].min(axis=2) < 250).any(axis=0).all()  # not the white that lies under the hole


def test_a_photograph_with_damaged_exif_is_edited_upright(served: Serving) -> None:
    """Orientation 6, and XResolution as text."""
    start, file = files(client(served).images.generate(prompt=PROMPT, extra_body={"seed": 7}))[0], io.BytesIO()
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHI", 0x011A, 2, 4) + b"abc\0"
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    Pillow.fromarray(np.rot90(pixels(start)).copy()).save(file, "JPEG", quality=100, subsampling=0, exif=exif)
    more = {"seed": 3, "num_inference_steps": 6, "strength": 0.0}
    again = files(client(served).images.edit(image=file.getvalue(), prompt=PROMPT, extra_body=more))[0]
    assert np.abs(pixels(again).astype(int) - pixels(start)).mean() < 8


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["\N{CRESCENT MOON}" * 20_000, "a moon\r\nNegative prompt: b\0\x1b\u2028\nSteps: 3", "é" * 200])
def test_a_prompt_of_any_characters_is_painted_into_every_format(served: Serving, kind: str, prompt: str) -> None:
    ask: Any = client(served).images.generate
    answer = ask(prompt=prompt, output_format=kind, extra_body={"seed": 7, "num_inference_steps": 1})
    read = ImageDataReader(io.BytesIO(files(answer)[0]))
    assert (read.parameter["seed"], read.parameter["steps"], read.parameter["sampler"]) == ("7", "1", "Euler")


@pytest.mark.parametrize("kind", ["image_generation", "image_edit"])
def test_a_stream_shows_the_picture_in_work_and_ends_with_the_whole(served: Serving, kind: str) -> None:
    ask = client(served).images
    more = {"seed": 7, "num_inference_steps": 8}
    start = files(ask.generate(prompt=PROMPT, extra_body=more))[0]
    edit = {"image": start} if kind == "image_edit" else {}
    method: Any = ask.edit if edit else ask.generate
    whole = files(method(prompt=PROMPT, extra_body=more, **edit))[0]
    events = list(method(prompt=PROMPT, stream=True, partial_images=2, extra_body=more, **edit))
    assert [event.type for event in events] == [f"{kind}.partial_image"] * 2 + [f"{kind}.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1] and events[-1].version == served.version
    shown = [pixels(base64.b64decode(event.b64_json)).astype(int) for event in events]
    assert np.abs(shown[-1] - pixels(whole)).max() <= 1
    assert 0 < np.abs(shown[1] - shown[2]).mean() < np.abs(shown[0] - shown[2]).mean()
    (only,) = method(prompt=PROMPT, stream=True, extra_body=more, **edit)
    assert only.type == f"{kind}.completed"


def bomb(width: int, height: int) -> bytes:
    """A PNG of that size by its header; its pixels would be millions of zeros."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1_000_000))), (b"IEND", b"")]
    pieces = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"size": "65x64"}, "size"),
        ({"size": "4096x4096"}, "size"),
        ({"n": 0}, "n"),
        ({"prompt": "x" * 1_000_000}, "prompt"),
        ({"prompt": "moon " * 3000}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"model": "gpt-image-2"}, "model"),
        ({"model": "vista+nobody:0.5"}, "model"),
        ({"model": "vista@production+x:99"}, "model"),
        ({"extra_body": {"regions": [{"prompt": "x", "bbox": [0, 0, 65, 64]}]}}, "regions[0].bbox"),
        ({"extra_body": {"regions": [{"prompt": "x", "bbox": [9, 9, 9, 9]}]}}, "regions[0].bbox"),
        ({"extra_body": {"adapter_scale": 2.5}}, "adapter_scale"),
        ({"extra_body": {"num_inference_steps": 1000}}, "num_inference_steps"),
        ({"extra_body": {"seed": 2**63 - 1}, "n": 2}, "seed"),
        ({"extra_body": {"negative_prompt": "blur"}}, "negative_prompt"),
        ({"extra_body": {"cfg_scale": 7}}, "cfg_scale"),
        ({"image": b"no picture"}, "image"),
        ({"image": bomb(60_000, 60_000)}, "image"),
        ({"image": encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[:2000]}, "image"),
        ({"image": encode_png(np.zeros((48, 48, 3), np.uint8))}, "size"),
        ({"image": encode_png(np.zeros((64, 64, 3), np.uint8)), "mask": encode_png(np.zeros((32, 32, 3), np.uint8))}, "mask"),
        ({"image": encode_png(np.zeros((64, 64, 3), np.uint8)), "mask": b"x"}, "mask"),
        ({"image": encode_png(np.zeros((64, 64, 3), np.uint8)), "mask": encode_png(np.zeros((64, 64, 3), np.uint8))}, "mask"),
    ],
)
def test_what_cannot_be_painted_is_an_error_that_names_the_parameter(served: Serving, fields: dict[str, Any], parameter: str) -> None:
    ask: Any = client(served).images.edit if "image" in fields else client(served).images.generate
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        ask(**{"prompt": PROMPT, **fields})
    assert caught.value.param == parameter and parameter.split("[")[0] in caught.value.message
    assert isinstance(caught.value, openai.NotFoundError) == (caught.value.code == "model_not_found")


def test_a_key_is_wanted_and_never_written(served: Serving) -> None:
    for wrong in ("wrong", "full2"):
        with pytest.raises(openai.AuthenticationError) as caught:
            client(served, wrong).images.generate(prompt=PROMPT)
        assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        list(client(served, "wrong").models.list())
    client(served).images.generate(prompt=PROMPT, user="somebody", extra_body={"seed": 5, "num_inference_steps": 1})
    line = audited(served)[-1]
    assert (line["message"], line["key"], line["seeds"], line["version"]) == ("painted", "full", [5], served.version)
    assert line["prompt_sha256"] == hashlib.sha256(PROMPT.encode()).hexdigest()
    written = served.audit.read_text() + "".join(served.log)
    assert "key-full" not in written and PROMPT not in written and "somebody" not in written


def test_a_key_that_had_its_share_is_told_when_to_come_again_and_the_client_does(served: Serving) -> None:
    few = {"num_inference_steps": 1}
    for _ in range(2):
        client(served, "slow").images.generate(prompt=PROMPT, extra_body=few)
    with pytest.raises(openai.RateLimitError) as caught:
        client(served, "slow").images.generate(prompt=PROMPT, extra_body=few)
    assert caught.value.code == "rate_limit_exceeded" and int(caught.value.response.headers["retry-after"]) in range(1, 6)
    assert client(served, "slow", max_retries=3).images.generate(prompt=PROMPT, extra_body=few).data
    with pytest.raises(openai.BadRequestError, match="n: 3 is more"):
        client(served, "slow").images.generate(prompt=PROMPT, n=3)


def test_a_full_queue_is_a_429_and_those_inside_are_served(served: Serving) -> None:
    asking = client(served).images

    def ask(seed: int) -> str:
        try:
            asking.generate(prompt=PROMPT, extra_body={"seed": seed, "num_inference_steps": 100})
        except openai.RateLimitError as error:
            assert int(error.response.headers["retry-after"]) >= 1
            return str(error.code)
        return "painted"

    with ThreadPoolExecutor(12) as pool:
        ends = list(pool.map(ask, range(12)))
    assert set(ends) == {"painted", "queue_full"} and ends.count("painted") >= 4


def test_a_client_that_goes_away_frees_its_place_at_once(served: Serving) -> None:
    more = {"num_inference_steps": 100}
    with pytest.raises(openai.APITimeoutError):
        client(served, "narrow", timeout=0.3).images.generate(prompt=PROMPT, n=4, extra_body=more)
    narrow = client(served, "narrow", max_retries=5)  # its place is free a step later
    with narrow.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=more) as stream:
        assert next(iter(stream)).type == "image_generation.partial_image"
    deadline = time.monotonic() + SECONDS
    while sum(line["message"] == "given up" and line["key"] == "narrow" for line in audited(served)) < 2:
        assert time.monotonic() < deadline, served.audit.read_text()
        time.sleep(0.05)
    assert narrow.images.generate(prompt=PROMPT, n=4, extra_body={"num_inference_steps": 1}).data


def test_an_idempotency_key_is_answered_once(served: Serving) -> None:
    ask = client(served, "slow", max_retries=5).images.with_raw_response.generate
    header = {"Idempotency-Key": f"once-{time.time()}"}
    more = {"num_inference_steps": 20}

    def painted(_: int) -> Any:
        return ask(prompt=PROMPT, extra_headers=header, extra_body=more)

    with ThreadPoolExecutor(4) as pool:  # at once: one paints, the others wait for it; a rate of two would not let four paint
        answers = list(pool.map(painted, range(4)))
    answers.append(painted(4))
    assert len({answer.text for answer in answers}) == 1  # with a seed that was drawn once
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 4
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(prompt="another", extra_headers=header, extra_body=more)
    assert caught.value.code == "idempotency_key_reused"
    events = [list(client(served).images.generate(prompt=PROMPT, stream=True, extra_headers={"Idempotency-Key": "s"})) for _ in range(2)]
    assert events[0][-1].b64_json == events[1][-1].b64_json  # pyright: ignore[reportAttributeAccessIssue]


def test_what_was_asked_is_counted_by_route(served: Serving) -> None:
    served.get("/any/path")
    status, metrics = served.get("/metrics")
    assert status == 200 and 'sfumato_inference_http_requests_total{route="other",status="404"}' in metrics
    assert 'sfumato_inference_http_requests_total{route="/v1/images/generations",status="200"}' in metrics
    assert f'sfumato_inference_version_requests_total{{outcome="ok",version="{served.version[:12]}"}}' in metrics
    assert served.get("/livez")[0] == served.get("/healthz")[0] == served.get("/readyz")[0] == 200
    assert Path(served.audit).stat().st_size
