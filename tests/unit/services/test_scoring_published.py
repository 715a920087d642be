"""Published layouts, with small random weights: what is loaded must compute what its authors' code computes."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from services.scoring.conversion import MPS, clip_config, convert
from services.scoring.engine import ScoringEngine
from services.scoring.loading import load_encoder, load_scorers
from services.scoring.sources import named
from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights
from sfumato.scoring.networks import AestheticPredictor
from sfumato.types import Image
from tests.unit.services.published import CONTEXT, PICKLED, SIDE, WIDTH, MpsModel, OpenClip, clip_model, shaken, write_tokenizer

PROMPTS = ["a moon over the lake by night", "the house", "a tree and the moon"]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def pictures(count: int = 3) -> list[Image]:
    return list(np.random.default_rng(3).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))


def pixels() -> torch.Tensor:
    """The pictures as CLIP normalises them."""
    return ((torch.from_numpy(np.stack(pictures())).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def ids(folder: Path, texts: list[str], **options: Any) -> torch.Tensor:
    return AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **options)["input_ids"]


def scores(metric: str, models: dict[str, str]) -> list[float]:
    engine = ScoringEngine(load_scorers([metric], models=models), batch=2)
    return [row[metric] for row in engine.score(pictures(), PROMPTS)]


def write_clip(folder: Path, seed: int = 0) -> None:
    """A CLIP folder as openai/clip-vit-large-patch14 is one."""
    clip_model(seed).save_pretrained(folder)
    write_tokenizer(folder)
    write_processor(folder)


def write_processor(folder: Path) -> None:
    from transformers import CLIPImageProcessor

    side = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=side, image_mean=MEAN, image_std=STD).save_pretrained(folder)


def cosine(seed: int, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        tokens = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
        out = clip_model(seed)(pixel_values=pixels(), input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return (out.image_embeds * out.text_embeds).sum(-1)


def test_clip_is_a_clip_folder(tmp_path: Path) -> None:
    write_clip(tmp_path)
    assert scores("clip", {"clip": str(tmp_path)}) == pytest.approx((100 * cosine(0, tmp_path)).tolist(), abs=1e-3)


def test_pickscore_is_its_logit_and_takes_the_processor_from_elsewhere(tmp_path: Path) -> None:
    write_clip(tmp_path / "whole", 1)
    assert scores("pickscore", {"pickscore": str(tmp_path / "whole")}) == pytest.approx(
        (clip_model(1).logit_scale.exp() * cosine(1, tmp_path / "whole")).tolist(), abs=1e-3
    )
    clip_model(1).save_pretrained(tmp_path / "bare")
    processor = tmp_path / "laion"
    write_tokenizer(processor)
    write_processor(processor)
    bare, whole = (load_encoder(named(str(tmp_path / name)), processor=str(processor)) for name in ("bare", "whole"))
    assert torch.equal(bare.tokens(PROMPTS)[0], whole.tokens(PROMPTS)[0])
    with pytest.raises(MissingWeights, match="no usable tokenizer"):
        load_encoder(named(str(tmp_path / "bare")), processor=str(tmp_path / "no" / "such" / "folder"))


def test_the_aesthetic_head_stands_on_the_named_clip_and_shares_its_one_look(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    head = shaken(AestheticPredictor(WIDTH), 2)
    torch.save(head.state_dict(), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    convert(tmp_path / "sac+logos+ava1-l14-linearMSE.pth", tmp_path / "head", "aesthetic")
    models = {"clip": str(tmp_path / "clip"), "aesthetic": str(tmp_path / "head")}
    with torch.no_grad():
        seen: Any = clip_model().get_image_features(pixel_values=pixels()).pooler_output  # pyright: ignore
        expected = head(seen / seen.norm(dim=-1, keepdim=True))
    assert scores("aesthetic", models) == pytest.approx(expected.tolist(), abs=1e-4)

    scorers: list[Any] = load_scorers(["clip", "aesthetic"], models=models)
    assert scorers[0].encoder is scorers[1].encoder
    looks: list[int] = []
    scorers[0].encoder.model.vision_model.register_forward_hook(lambda *_: looks.append(1))
    ScoringEngine(scorers, batch=2).score(pictures(), PROMPTS)
    assert len(looks) == 2, "one look a batch"
    with pytest.raises(InvalidInput, match="Name under 'clip'"):
        load_scorers(["aesthetic"], models={"aesthetic": models["aesthetic"]})


def test_hpsv2_is_open_clips_cosine_times_a_hundred(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = shaken(OpenClip(), 4)
    assert isinstance(model, OpenClip)
    checkpoint = {"epoch": 1, "name": "hps", "state_dict": {f"module.{name}": t for name, t in model.state_dict().items()}}
    torch.save(checkpoint, tmp_path / "HPS_v2.1_compressed.pt")
    convert(tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "hpsv2", "hpsv2")
    write_tokenizer(tmp_path / "hpsv2")
    with torch.no_grad():
        # open_clip pads with zeros after the end mark; no padding is the same, for words look back only.
        expected = [100 * model.cosine(pixels()[i : i + 1], ids(tmp_path / "hpsv2", [PROMPTS[i]])).item() for i in range(3)]
    assert scores("hpsv2", {"hpsv2": str(tmp_path / "hpsv2")}) == pytest.approx(expected, abs=1e-3)


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> MpsModel:
    """MPS as it is in its authors' process: its classes belong to their modules."""
    for name, kinds in ({"trainer": {}, "trainer.models": {}} | PICKLED).items():
        module = ModuleType(name)
        for kind_name, kind in kinds.items():
            monkeypatch.setattr(kind, "__module__", name)
            setattr(module, kind_name, kind)
        monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(5)
    model = shaken(MpsModel(), 5)
    assert isinstance(model, MpsModel)
    return model


def test_mps_is_converted_from_the_pickled_whole_model(mps: MpsModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(mps, tmp_path / "MPS_overall_checkpoint.pth")
    save_file({name: t.clone() for name, t in mps.state_dict().items()}, tmp_path / "MPS_overall.safetensors")
    write_tokenizer(tmp_path / "words")
    full = {"padding": "max_length", "max_length": CONTEXT, "truncation": True}
    texts, condition = (ids(tmp_path / "words", texts, **full) for texts in (PROMPTS, [MPS["conditions"]["overall"]]))
    with torch.no_grad():
        expected = mps.score(pixels(), texts, condition).tolist()
    for name in ("trainer", "trainer.models", *PICKLED):
        monkeypatch.delitem(sys.modules, name)
    for source in ("MPS_overall_checkpoint.pth", "MPS_overall.safetensors"):
        target = tmp_path / Path(source).stem
        convert(tmp_path / source, target, "mps")
        write_tokenizer(target)
        assert scores("mps", {"mps": str(target)}) == pytest.approx(expected, abs=1e-3)
    assert not [name for name in sys.modules if name.startswith("trainer")]


def test_the_condition_decides_which_words_mps_looks_at(mps: MpsModel, tmp_path: Path) -> None:
    torch.save(mps, tmp_path / "mps.pth")
    convert(tmp_path / "mps.pth", tmp_path / "mps", "mps")
    write_tokenizer(tmp_path / "mps")
    (scorer,) = load_scorers(["mps"], models={"mps": str(tmp_path / "mps")})
    other: Any = copy.copy(scorer)
    other.condition = "moon night"
    one, two = (ScoringEngine([s]).score(pictures(), PROMPTS) for s in (scorer, other))
    assert any(abs(a["mps"] - b["mps"]) > 1e-3 for a, b in zip(one, two, strict=True))


def test_shapes_alone_tell_the_published_clip() -> None:
    """ViT-H/14 as laion/CLIP-ViT-H-14-laion2B-s32B-b79K describes it."""
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24, "hidden_act": "gelu"}
    sight = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "num_hidden_layers": 32, "hidden_act": "gelu"}
    published = CLIPConfig(text_config=text, vision_config=sight | {"patch_size": 14, "image_size": 224}, projection_dim=1024)
    with torch.device("meta"):
        told = clip_config(CLIPModel(published).state_dict()).to_dict()
    expected = published.to_dict()
    assert told["projection_dim"] == 1024
    for part in ("text_config", "vision_config"):
        assert {key for key, value in expected[part].items() if told[part][key] != value} <= {"pad_token_id"}


# --- files that are not what they should be ---


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("layout", ["aesthetic", "hpsv2", "mps"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, layout: str) -> None:
    marker = tmp_path / "executed"
    state = AestheticPredictor(WIDTH).state_dict()
    torch.save({"state_dict": state | {"extra": Evil(marker)}}, tmp_path / "zip.pth")
    torch.save({"state_dict": state | {"extra": Evil(marker)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(marker)))
    for name in ("zip.pth", "old.pth", "plain.pth"):
        with pytest.raises(BrokenWeights):
            convert(tmp_path / name, tmp_path / "out", layout)
    with pytest.raises(BrokenWeights, match=r"more than weights: .*system"):
        convert(tmp_path / "zip.pth", tmp_path / "out", layout)
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_files_of_something_else_are_told(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(AestheticPredictor(WIDTH).state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-900])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    for name in ("other.pth", "list.pth", "cut.pth", "cut.safetensors"):
        for layout in ("aesthetic", "hpsv2", "mps"):
            with pytest.raises(BrokenWeights, match=name):
                convert(tmp_path / name, tmp_path / "out", layout)
    with pytest.raises(InvalidInput, match="Use one of: aesthetic, hpsv2, mps"):
        convert(tmp_path / "whole.pth", tmp_path / "out", "clip")
    with pytest.raises(InvalidInput, match="is no file"):
        convert(tmp_path / "none.pth", tmp_path / "out", "aesthetic")
    with pytest.raises(InvalidInput, match="in use"):
        convert(tmp_path / "whole.pth", tmp_path, "aesthetic")


def test_a_truncated_folder_is_told_from_a_missing_one(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BrokenWeights, match="sfumato convert"):
        load_scorers(["clip"], models={"clip": str(tmp_path / "clip")})
    file.unlink()
    (tmp_path / "clip" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    with pytest.raises(BrokenWeights):
        load_scorers(["clip"], models={"clip": str(tmp_path / "clip")})
    assert not (tmp_path / "executed").exists()
    with pytest.raises(InvalidInput, match="neither a folder nor a name on the hub"):
        load_scorers(["clip"], models={"clip": str(tmp_path / "none")})


def test_hpsv2_without_weights_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights) as caught:
        load_scorers(["hpsv2"])
    for word in ("xswu/HPSv2", "sfumato convert", "--as hpsv2", "score.models"):
        assert word in str(caught.value)


def test_versions_name_the_weights(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_clip(tmp_path / str(seed) / "clip", seed)
    versions = [load_scorers(["clip"], models={"clip": str(tmp_path / str(seed) / "clip")})[0].metric.version for seed in (0, 1)]
    assert len(set(versions)) == 2 and all(version.startswith("clip-") for version in versions)
