"""What is asked of an adapter before it is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from services.registry.adapters import check_base, verified
from sfumato.errors import InvalidInput, SfumatoError
from sfumato.registry.bases import base_modules
from tests.unit.services.registry.samples import BASE, TO_K, TO_Q, adapter, tensors

A, B = f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"


def test_a_good_adapter_is_described() -> None:
    digest, data = adapter(rank=3)
    found = verified(data, digest)
    assert (found.sha256, found.size, found.ranks, found.dtypes) == (digest, len(data), (3, 3), ("F32",))
    assert found.parameters == sum(array.size for array in tensors(rank=3).values())
    assert set(found.modules) == {TO_Q, TO_K}
    assert BASE.modules is not None
    check_base(found, BASE.modules)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({A: None}, "no pair"),
        ({A: np.ones((3, 4), np.float32)}, "do not multiply"),
        ({A: np.ones((2, 4, 1), np.float32)}, "no matrix"),
        ({A: np.ones((0, 4), np.float32)}, "nothing in it"),
        ({A: np.ones((2, 4), np.int32)}, "is of I32"),
        ({f"{TO_Q}.alpha": np.ones((1,), np.float32)}, "not of the plain layout.*lora convert"),
        ({"lora_unet_mid_block.lora_down.weight": np.ones((2, 4), np.float32)}, "no one model and layout"),
        ({"unet.mid.lora_A.weight": np.ones((2, 4), np.float32), "unet.mid.lora_B.weight": np.ones((6, 2), np.float32)}, "no one model"),
        ({A: np.full((2, 4), np.nan, np.float32)}, "not finite"),
        ({A: np.array([[1, 2, 3, -np.inf]] * 2, np.float64)}, "not finite"),
        ({A: np.array([[1, 2, 3, np.inf]] * 2, np.float16)}, "not finite"),
    ],
)
def test_what_is_no_good_adapter_is_refused_by_the_name_of_its_key(change: dict[str, np.ndarray | None], word: str) -> None:
    content = {key: array for key, array in (tensors() | change).items() if array is not None}
    with pytest.raises(InvalidInput, match=word):
        verified(save(content))


def test_bfloat16_is_read_without_pytorch() -> None:
    def file(bits: int) -> bytes:
        header, body = {}, b""
        for key, shape in ((A, (1, 4)), (B, (6, 1))):
            size = 2 * shape[0] * shape[1]
            header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(body), len(body) + size]}
            body += bits.to_bytes(2, "little") * (size // 2)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body

    assert verified(file(0x3F80)).dtypes == ("BF16",)  # 1.0
    for bits in (0x7F80, 0xFF80, 0x7FC0):  # both infinities and a NaN
        with pytest.raises(InvalidInput, match="not finite"):
            verified(file(bits))


def test_a_file_that_is_not_what_its_sender_says_is_refused() -> None:
    with pytest.raises(InvalidInput, match="sha256"):
        verified(adapter(0)[1], adapter(1)[0])


def test_a_scale_outside_the_numbers_is_refused() -> None:
    with pytest.raises(InvalidInput, match="sfumato lora convert"):
        verified(save(tensors(), metadata={"lora_adapter_metadata": "{}"}))
    assert verified(save(tensors(), metadata={"where": "here"})).modules


def test_an_empty_file_has_no_modules() -> None:
    with pytest.raises(InvalidInput, match="no keys"):
        verified(save({}))


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(SfumatoError):
        verified(data)


@given(st.data())
def test_a_flipped_byte_never_passes_as_the_file_that_was_sent(data: st.DataObject) -> None:
    digest, content = adapter()
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidInput, match="sha256"):
        verified(bytes(damaged), digest)


def test_an_adapter_of_another_model_is_refused() -> None:
    found = verified(adapter()[1])
    with pytest.raises(InvalidInput, match="has no linear"):
        check_base(found, {TO_Q: [6, 4]})
    with pytest.raises(InvalidInput, match="the update is 6x4, the weight 5x4"):
        check_base(found, {TO_Q: [5, 4], TO_K: [6, 4]})


def test_the_linears_of_a_model_are_read_from_its_headers(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    weights = {"mid.to_q.weight": np.ones((6, 4), np.float16), "mid.to_q.bias": np.ones(6), "conv.weight": np.ones((2, 2, 3, 3))}
    save_file(weights, tmp_path / "unet" / "model.safetensors")
    assert base_modules(tmp_path) == {"unet.mid.to_q": [6, 4]}
