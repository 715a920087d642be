"""What is looked at before it is given out, and what a request becomes."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from services.inference.http.errors import RequestRefused
from services.inference.http.images import look_at
from services.inference.http.schemas import EditRequest, GenerationRequest
from sfumato.runtime.images import decode_mask, encode_png, read_image
from sfumato.runtime.models import nudenet
from sfumato.types import Image


def portrait() -> Image:
    """Matplotlib's sample picture: Grace Hopper in uniform."""
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    return read_image(Path(spec.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg", "image")


def test_a_picture_in_which_the_detector_finds_what_is_listed_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real detector, with the face that it does see taken for the thing to be held back."""
    detector, sky = nudenet.NudityDetector.load(), np.full((64, 64, 3), (120, 170, 230), np.uint8)
    asyncio.run(look_at([sky, portrait()], detector))
    monkeypatch.setattr(nudenet, "UNSAFE", frozenset({"FACE_FEMALE"}))
    asyncio.run(look_at([sky], detector))
    with pytest.raises(RequestRefused) as caught:
        asyncio.run(look_at([sky, portrait()], detector))
    assert (caught.value.status, caught.value.code) == (400, "moderation_blocked")
    asyncio.run(look_at([portrait()], None))


def test_a_mask_is_where_its_file_is_transparent_or_else_white() -> None:
    white = np.zeros((4, 4, 3), np.uint8)
    white[:2] = 255
    assert np.array_equal(decode_mask(encode_png(white)), white[:, :, 0])
    see_through = np.dstack([white, np.full((4, 4), 255, np.uint8)])
    see_through[:, 3, 3] = 0
    assert np.array_equal(decode_mask(encode_png(see_through)) == 255, see_through[:, :, 3] == 0)


def test_steps_and_distance_are_what_is_said_before_what_is_meant() -> None:
    def steps(**fields: object) -> int:
        return GenerationRequest.model_validate({"prompt": "x", **fields}).steps(20, 50)

    assert [steps(), steps(quality="low"), steps(quality="max"), steps(quality="max", num_inference_steps=3)] == [20, 10, 40, 3]
    edits = [{}, {"input_fidelity": "high"}, {"input_fidelity": "high", "strength": 0.9}]
    assert [EditRequest.model_validate({"prompt": "x", **each}).distance() for each in edits] == [0.8, 0.4, 0.9]
