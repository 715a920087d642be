"""The one reader of adapter files: what it reads exactly, what it refuses by name, and that nothing else can happen to any bytes."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from services.registry.adapters import verified
from sfumato.errors import BrokenWeights, InvalidInput, SfumatoError
from sfumato.lora.adapter import delta
from sfumato.lora.contents import FLOATS, INTEGERS, Entry, number
from sfumato.lora.files import dumps, load, loads
from sfumato.runtime.models.adapters import decode_adapter

GENERATOR = torch.Generator().manual_seed(0)
A, B = torch.randn(2, 6, generator=GENERATOR), torch.randn(4, 2, generator=GENERATOR)
PLAIN = {"transformer.x.lora_A.weight": A, "transformer.x.lora_B.weight": B}
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
KOHYA_STEM = "lora_unet_double_blocks_0_img_mlp_0"
KOHYA = {f"{KOHYA_STEM}.lora_down.weight": A, f"{KOHYA_STEM}.lora_up.weight": B, f"{KOHYA_STEM}.alpha": torch.tensor(2.0)}


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_is_read_exactly_in_every_layout(dtype: torch.dtype) -> None:
    for tensors, name in ((PLAIN, "x"), (KOHYA, "transformer_blocks.0.ff.net.0.proj")):
        small = {key: tensor if key.endswith("alpha") else tensor.to(dtype) for key, tensor in tensors.items()}
        a, b = loads(save(small)).factors[name]
        low, high = [tensor.float() for key, tensor in small.items() if not key.endswith("alpha")]
        assert torch.equal(a.float(), low) and torch.equal(b.float(), high)
        again = loads(dumps(loads(save(small))))
        torch.testing.assert_close(delta(again, name), high @ low)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_other_floats_keep_their_dtype_and_numbers(dtype: torch.dtype) -> None:
    adapter = loads(save({key: tensor.to(dtype) for key, tensor in PLAIN.items()}))
    assert {t.dtype for t in adapter.factors["x"]} == {dtype}
    assert torch.equal(adapter.factors["x"][0], A.to(dtype))


def test_a_scale_keeps_float64() -> None:
    wide = {key: tensor.double() for key, tensor in PLAIN.items()} | {"transformer.x.alpha": torch.tensor(1.0)}
    assert torch.equal(loads(save(wide)).factors["x"][1], B.double() * 0.5)
    huge = {
        "transformer.x.lora_A.weight": A.double(),
        "transformer.x.lora_B.weight": B.double() * 1e200,
        "transformer.x.alpha": torch.tensor(1),
    }
    assert torch.isfinite(loads(save(huge)).factors["x"][1]).all()


@pytest.mark.parametrize("dtype", [t for t in ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")])
def test_bits_mean_what_pytorch_says(dtype: str) -> None:
    """Every number of the small formats, and the edges of the large ones."""
    torch_dtype = {
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F16": torch.float16,
        "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    }[dtype]  # fmt: skip
    size = torch_dtype.itemsize
    rng = random.Random(1)
    patterns = [n.to_bytes(size, "little") for n in range(256)] if size == 1 else [rng.randbytes(size) for _ in range(300)]
    if size > 1:
        edges = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-30, -1.5]).to(torch_dtype)
        patterns += [bytes(edge.view(torch.uint8).tolist()) for edge in edges.unsqueeze(1)]
    for bits in patterns:
        value = torch.frombuffer(bytearray(bits), dtype=torch_dtype).double()
        entry = Entry(dtype, (1,), bytearray(bits))
        assert entry.finite == bool(torch.isfinite(value).all())
        assert entry.zero == bool((value == 0).all())
        found = number(entry)
        assert found is not None and (found == float(value) or np.isnan([found, float(value)]).all())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    ],
)
def test_an_alpha_is_one_number_of_any_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    alpha = torch.ones(shape).to(dtype)
    torch.testing.assert_close(delta(loads(save(PLAIN | {"transformer.x.alpha": alpha})), "x"), 0.5 * B @ A)


def test_a_negative_alpha_turns_the_update_round() -> None:
    torch.testing.assert_close(delta(loads(save(PLAIN | {"transformer.x.alpha": torch.tensor(-2.0)})), "x"), -B @ A)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"transformer.x.lora_A.weight": A[:0], "transformer.x.lora_B.weight": B[:, :0]}, r"lora_A.weight has the shape \(0, 6\).*rank is 0"),
    (KOHYA | {f"{KOHYA_STEM}.lora_down.weight": A[:0], f"{KOHYA_STEM}.lora_up.weight": B[:, :0]}, "rank is 0"),
    (PLAIN | {"transformer.x.lora_A.weight": A[:, :0]}, "nothing in it"),
    (PLAIN | {"transformer.x.lora_A.weight": A.to(torch.int8)}, "lora_A.weight is of I8"),
    (PLAIN | {"transformer.x.lora_B.weight": B > 0}, "lora_B.weight is of BOOL"),
    (PLAIN | {"transformer.x.lora_A.weight": A.to(torch.complex64)}, "lora_A.weight is of C64"),
    (PLAIN | {"transformer.x.lora_A.weight": torch.full((2, 6), float("nan")).to(torch.float8_e4m3fn)}, "not finite"),
    (PLAIN | {"transformer.x.lora_A.weight": torch.full((2, 6), float("inf")).to(torch.float8_e5m2)}, "not finite"),
    (PLAIN | {"transformer.x.lora_B.weight": torch.full((4, 2), float("inf"), dtype=torch.bfloat16)}, "not finite"),
    (PLAIN | {"transformer.x.lora_A.weight": A[:1]}, r"\(1, 6\) and \(4, 2\), which do not multiply"),
    (PLAIN | {"transformer.x.alpha": torch.tensor(0.0)}, "x.alpha is 0, which makes the update"),
    (PLAIN | {"transformer.x.alpha": torch.tensor(0)}, "x.alpha is 0"),
    (PLAIN | {"transformer.x.alpha": torch.tensor(float("nan"))}, "x.alpha is nan"),
    (PLAIN | {"transformer.x.alpha": torch.tensor(float("inf"))}, "x.alpha is inf"),
    (PLAIN | {"transformer.x.alpha": torch.tensor(3e38), "transformer.x.lora_B.weight": B * 1e10}, "times its scale of .* is not finite"),
    (PLAIN | {"transformer.x.alpha": torch.ones(2)}, r"x.alpha is of F32 \(2,\), not one number"),
    (PLAIN | {"transformer.x.alpha": torch.ones(0)}, "not one number"),
    (PLAIN | {"transformer.x.alpha": torch.tensor(True)}, "x.alpha is of BOOL"),
    (PLAIN | {"transformer.x.scale": torch.tensor(2.0)}, "x.scale is a scale beside the factors"),
    (PLAIN | {"transformer.x.lora_A.scale_weight": torch.tensor(2.0)}, "scale_weight is a scale beside"),
    (KOHYA | {f"{KOHYA_STEM}.scalar": torch.tensor(2.0)}, "scalar is a scale beside"),
    (PLAIN | {"transformer.x.lora.down.weight": A}, "are the same factor"),
    (PLAIN | {"transformer.x.lora_down.weight": A}, "are the same factor"),
    (KOHYA | {"lora_unet_transformer_blocks_0_ff_net_0_proj.lora_down.weight": A,
              "lora_unet_transformer_blocks_0_ff_net_0_proj.lora_up.weight": B}, "another key means too"),
    ({"transformer.x.lora_B.weight": B}, "x has lora_B .lora_up. only"),
    ({f"{KOHYA_STEM}.alpha": torch.tensor(2.0)}, "has alpha only"),
    ({"transformer.x.lora_A.weight": torch.ones(2, 6, 3, 3), "transformer.x.lora_B.weight": torch.ones(4, 2, 1, 1)}, "convolution of 3x3"),
    ({"transformer.x.lora_A.weight": torch.ones(2), "transformer.x.lora_B.weight": B}, "no matrix"),
    ({"transformer.x.lora_A.weight": torch.ones(70000, 1), "transformer.x.lora_B.weight": torch.ones(1, 70000)}, "rank 70000; the limit"),
    (PLAIN | {"lora_te_text_model_x.alpha": torch.ones(1)}, "text encoder's.*lora convert FILE --without-text-encoders"),
    (PLAIN | {"text_encoder_2.text_model.encoder.x.lora_A.weight": A}, "--without-text-encoders"),
    (PLAIN | {"transformer.x.lora_magnitude_vector.weight": A}, "DoRA"),
    (PLAIN | {"transformer.x.lora_magnitude_vector": A}, "DoRA"),
    ({f"{KOHYA_STEM}.hada_w1_a": A}, "LoHa"),
    ({f"{KOHYA_STEM}.lokr_w1": A}, "LoKr"),
    ({f"{KOHYA_STEM}.oft_blocks": A}, "OFT"),
    ({f"{KOHYA_STEM}.boft_blocks": A}, "BOFT"),
    ({f"{KOHYA_STEM}.on_input": torch.ones(1), f"{KOHYA_STEM}.weight": A}, "IA3"),
    ({f"{KOHYA_STEM}.a1.weight": A}, "GLoRA"),
    (KOHYA | {f"{KOHYA_STEM}.lora_mid.weight": A}, "Tucker"),
    (KOHYA | {f"{KOHYA_STEM}.diff_b": A}, "whole weight or bias"),
    (KOHYA | {f"{KOHYA_STEM}.dora_scale": A}, "DoRA"),
    ({"double_blocks.0.processor.qkv_lora1.down.weight": A}, "XLabs"),
    ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": A, "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight": B},
     "names no module that is known"),
    ({"diffusion_model.layers.0.qkv.lora_A.weight": A, "diffusion_model.layers.0.qkv.lora_B.weight": B}, "another model"),
    ({"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": A, "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": B},
     "4 high, not 18"),
    (PLAIN | {"x\x1b[31m\n.lora_A.weight": A}, r"the key 'x\\x1b\[31m\\n"),
    (PLAIN | {"y" * 5000: A}, "y{100}'\\.\\.\\. is not of a LoRA"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "words"), REFUSED)
def test_what_is_refused_is_refused_by_name_by_every_reader(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    data = save({key: tensor.clone().contiguous() for key, tensor in tensors.items()})
    (tmp_path / "a.safetensors").write_bytes(data)
    readers: list[Callable[[], object]] = [lambda: load(tmp_path / "a.safetensors"), lambda: loads(data), lambda: decode_adapter(data)]
    for read in readers:
        with pytest.raises(BrokenWeights, match=words) as refused:
            read()
        assert refused.value.hint and len(str(refused.value)) < 900
    with pytest.raises(InvalidInput):
        verified(data)


def header(fields: dict[str, Any], body: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(fields).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


PAIR = {"transformer.x.lora_A.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
        "transformer.x.lora_B.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 8]}}  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        header({}, length=1 << 40),
        header({}, length=99_000_000),
        header(PAIR),
        header(PAIR, b"\0" * 7),
        header(PAIR, b"\0" * 9),
        header(PAIR | {"__metadata__": {"a": 1}}, b"\0" * 8),
        header(PAIR | {"__metadata__": ["a"]}, b"\0" * 8),
        header(PAIR | {"__metadata__": {"a": {"b": "c"}}}, b"\0" * 8),
        header({"x": {"dtype": "F12", "shape": [1], "data_offsets": [0, 1]}}, b"\0"),
        header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"x": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"\0" * 4),
        b"\x80\x04\x95pickle.",
        b"PK\x03\x04" + b"\0" * 60,
        b"<!DOCTYPE html><html></html>",
        b'{"error": "not found"}',
    ],
)
def test_damaged_files_are_refused_in_words(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    for read in (lambda: loads(data), lambda: load(tmp_path / "a.safetensors")):
        with pytest.raises(BrokenWeights, match="not a readable safetensors file|no keys"):
            read()


@pytest.mark.parametrize("text", ["[" * 100_000, "5", "null", '"a"', "{", '{"a": NaN}', "\ud800".encode("utf-8", "replace").decode()])
def test_free_text_of_any_kind_changes_nothing(text: str) -> None:
    assert loads(save(PLAIN, metadata={"sfumato": text})).factors.keys() == {"x"}


SCALE = {"transformer.r": 2, "transformer.lora_alpha": 2}


@pytest.mark.parametrize(
    "config",
    [
        "[" * 100_000,
        "5",
        "[]",
        "{",
        '{"transformer.r": 2}',
        '{"transformer.r": 2, "transformer.lora_alpha": NaN}',
        *(
            json.dumps(SCALE | {f"transformer.{field}": value})
            for field, value in (
                ("r", 0),
                ("r", None),
                ("lora_alpha", 0),
                ("lora_alpha", "two"),
                ("lora_alpha", [1]),
                ("rank_pattern", 5),
                ("rank_pattern", {"(": 2}),
                ("use_dora", True),
            )
        ),
    ],
)
def test_a_header_that_gives_no_scale_is_refused(config: str) -> None:
    with pytest.raises(BrokenWeights):
        loads(save(PLAIN, metadata={"lora_adapter_metadata": config}))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.truncate((8 << 30) + 1)  # sparse
    with pytest.raises(BrokenWeights, match="8,589,934,593 bytes are more than the limit"):
        load(tmp_path / "a.safetensors")


# Fuzzing: files of every layout, changed in keys, dtypes, shapes, numbers and bytes.
STEMS = {
    "transformer.{}": ["transformer_blocks.0.attn.to_q", "x", "proj_out"],
    "unet.{}": ["mid_block.attentions.0.proj_in", "down_blocks.0.resnets.0.time_emb_proj"],
    "{}": ["transformer_blocks.0.attn.to_q", "double_blocks.0.img_attn.qkv", "down_blocks.0.attentions.0.proj_in"],
    "diffusion_model.{}": ["double_blocks.0.img_attn.qkv", "final_layer.adaLN_modulation.1", "input_blocks.1.1.proj_in"],
    "lora_unet_{}": ["single_blocks_3_linear1", "down_blocks_0_attentions_0_proj_in", "img_in", "input_blocks_4_1_proj_in"],
    "lora_transformer_{}": ["transformer_blocks_1_attn_to_out_0", "x_embedder", "norm_out_linear"],
}
SUFFIXES = ["lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "lora.down.weight", "lora_A.default.weight", "alpha"]
SUFFIXES += ["dora_scale", "hada_w1_a", "lokr_w1", "diff", "bias", "weight", "lora_mid.weight", "scale", "", "LORA_A.weight"]
DTYPES = [*FLOATS, *INTEGERS, "BOOL", "F8_E4M3FNUZ", "C64", "F4"]
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1, "F8_E4M3FNUZ": 1, "C64": 8, "F4": 1,
         "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}  # fmt: skip


def random_file(rng: random.Random) -> bytes:
    """A file that is nearly an adapter: mostly right keys, shapes and dtypes, with some that are not."""
    fields: dict[str, Any] = {}
    body = b""
    layout = rng.choice(list(STEMS))
    for _ in range(rng.randint(0, 3)):
        prefix = layout if rng.random() < 0.9 else rng.choice(list(STEMS))
        stem = prefix.format(rng.choice(STEMS[prefix]))
        rank, width, height = rng.choice([1, 2, 4]), rng.choice([2, 4, 6]), rng.choice([2, 6, 12, 14])
        deep = rng.choice([*[[]] * 8, [1, 1], [1, 1], [3, 3]])
        dtype = rng.choice(["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]) if rng.random() < 0.9 else rng.choice(DTYPES)
        halves = [("lora_A.weight", [rank, width, *deep]), ("lora_B.weight", [height, rank, *deep])]
        if rng.random() < 0.4:
            halves.append(("alpha", rng.choice([[], [1], [2], [0]])))
        for half, shape in halves:
            if rng.random() < 0.04:
                shape = [rng.choice([0, 1, 3, 1 << 40]) for _ in range(rng.randint(0, 5))]
            suffix = half if rng.random() < 0.95 else rng.choice(SUFFIXES)
            size = int(np.prod(shape, dtype=object)) * BYTES[dtype] if shape else BYTES[dtype]
            stored = size if size < 10_000 else 16
            chunk = bytes(stored) if rng.random() < 0.1 else rng.randbytes(stored) if rng.random() < 0.1 else bytes([0x30]) * stored
            fields[f"{stem}.{suffix}" if suffix else stem] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [len(body), len(body) + stored],
            }
            body += chunk
    if rng.random() < 0.2:
        fields["__metadata__"] = {
            rng.choice(["sfumato", "lora_adapter_metadata", "format"]): rng.choice(["{}", "[]", "pt", '{"r": 1}', "{"])
        }
    data = bytearray(header(fields, body))
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 5])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.05 else data)


def outcome(read: Callable[[], Any]) -> Any:
    """What a reader returns; None where it refuses in words. Anything else it raises is a failure of the test."""
    try:
        return read()
    except SfumatoError as error:
        assert len(str(error)) < 1500 and str(error).isprintable()
        return None


def fuzz(seeds: range) -> tuple[int, int]:
    """How many files the reader and the registry take; what the registry takes, the reader has with the same shapes."""
    read = registered = 0
    for seed in seeds:
        data = random_file(random.Random(seed))
        adapter, kept = outcome(lambda data=data: loads(data)), outcome(lambda data=data: verified(data))
        if kept is not None:
            assert adapter is not None
            shapes = {name.partition(".")[2]: (m.outputs, m.inputs) for name, m in kept.modules.items()}
            assert shapes == {name: (b.shape[0], a.shape[1]) for name, (a, b) in adapter.factors.items()}
        if adapter is not None:
            again = loads(dumps(adapter))
            assert again.ranks == adapter.ranks and again.pointwise == adapter.pointwise
            assert all(torch.equal(again.factors[name][0], a) for name, (a, _) in adapter.factors.items())
        read, registered = read + (adapter is not None), registered + (kept is not None)
    return read, registered


def test_files_of_any_kind_are_read_or_refused_in_words() -> None:
    """The long form is `make lora-fuzz`."""
    read, registered = fuzz(range(2000))
    assert read > 150 and registered > 30  # the fuzzer does reach what is behind the checks


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    torch.save(PLAIN, tmp_path / "a.bin")
    with pytest.raises(BrokenWeights, match="not a readable safetensors file"):
        load(tmp_path / "a.bin")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    with pytest.raises(SfumatoError, match="Only safetensors are read"):
        load(tmp_path)


def test_text_encoders_are_left_out_on_demand(tmp_path: Path) -> None:
    for plain, text in (
        (PLAIN, {"text_encoder.text_model.x.lora_A.weight": A, "text_encoder_2.y.lora_B.weight": B}),
        (KOHYA, {"lora_te1_text_model_x.lora_down.weight": A, "lora_te2_y.alpha": torch.ones(1), "lora_te3_z.hada_w1_a": A}),
    ):
        text = {key: tensor.clone() for key, tensor in text.items()}
        save_file(plain | text, tmp_path / "both.safetensors")
        (module,) = load(tmp_path / "both.safetensors", without_text_encoders=True).factors
        torch.testing.assert_close(delta(load(tmp_path / "both.safetensors", without_text_encoders=True), module), B @ A)
        save_file(text, tmp_path / "text.safetensors")
        with pytest.raises(BrokenWeights, match="nothing is left"):
            load(tmp_path / "text.safetensors", without_text_encoders=True)


if __name__ == "__main__":
    print("{} files read, {} of them registered".format(*fuzz(range(int(sys.argv[1])))))
