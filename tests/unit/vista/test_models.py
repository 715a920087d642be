"""The shipped models: whole, small, of the real classes, loaded by ordinary ``from_pretrained``, with outputs that stay."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from transformers import AutoProcessor, CLIPModel, CLIPTextModel, Qwen2VLForConditionalGeneration, T5EncoderModel

from sfumato.errors import BrokenWeights, MissingWeights
from sfumato.vista import weights, world
from sfumato.vista.evaluation.detector import Detector
from sfumato.vista.evaluation.generator import paint
from sfumato.vista.evaluation.judge import Judge

GOLDEN = Path(__file__).parents[2] / "golden"
MOON = "a full moon over mountains and a lake at night"


@pytest.mark.parametrize("part", weights.PARTS)
def test_every_part_is_shipped_whole(part: str) -> None:
    folder = weights.locate(part)
    assert set(json.loads((folder / weights.MANIFEST).read_text()))
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_all_the_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in weights.ROOT.rglob("*") if path.is_file()) <= 32 * 2**20


def test_the_generator_is_a_flux_pipeline_that_paints_what_it_painted() -> None:
    pipeline = FluxPipeline.from_pretrained(weights.locate("generator"))
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.transformer, FluxTransformer2DModel)
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert isinstance(pipeline.text_encoder, CLIPTextModel)
    assert isinstance(pipeline.text_encoder_2, T5EncoderModel)
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    (image,) = paint(pipeline, [MOON], [7])
    with Image.open(GOLDEN / "moon.png") as golden:
        assert np.abs(image.astype(int) - np.asarray(golden).astype(int)).mean() < 2
    (found,) = Detector.load().detect([image])
    assert {"moon", "mountains", "lake"} <= set(found)


def test_the_understanding_module_is_a_qwen2_vl() -> None:
    folder = weights.locate("understanding")
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    scene = world.sample_scene(random.Random(11), kinds=("house", "lake"), count=2)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a house?"}]}], tokenize=False
    )
    batch = processor(text=[text], images=[Image.fromarray(world.render(scene))], return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=4, do_sample=False)  # pyright: ignore[reportAttributeAccessIssue]
    assert processor.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip() == "yes"


def test_clip_is_a_clip_model() -> None:
    assert isinstance(CLIPModel.from_pretrained(weights.locate("clip")), CLIPModel)


def test_the_judge_and_the_detector_tell_finish_and_boxes() -> None:
    scene = world.sample_scene(random.Random(3), kinds=("house", "tree"), time="day", count=2)
    pictures = [world.render(world.with_finish(scene, finish)) for finish in (False, True)]
    plain, beautiful = Judge.load().finish(pictures)
    for element in scene.elements:
        assert plain[element.kind] < 0.2 < 0.8 < beautiful[element.kind]
    for found in Detector.load().detect(pictures):
        assert set(found) == {"house", "tree"}
        for kind, detection in found.items():
            element = scene.find(kind)
            assert element is not None
            assert np.abs(np.subtract(detection.box, world.pixel_box(element))).max() <= 3


def test_absent_and_damaged_weights_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="vista train --part clip"):
        weights.locate("clip", tmp_path)
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"whole")
    weights.seal(folder)
    assert weights.locate("clip", tmp_path) == folder
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(BrokenWeights, match=r"model\.safetensors is damaged"):
        weights.locate("clip", tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"model\.safetensors is missing"):
        weights.locate("clip", tmp_path)
