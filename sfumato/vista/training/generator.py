"""Training of the Vista generator: flow matching on cached latents, then guidance distilled into the transformer."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from sfumato.vista import generator
from sfumato.vista.phrases import training_example, vocabulary
from sfumato.vista.training.loop import Step
from sfumato.vista.training.optim import Muon
from sfumato.vista.world import render

CAPTIONS = 4
HELD_OUT = 256
UNCONDITIONAL = 0.1
GUIDANCE = 3.0


@dataclass(frozen=True)
class Pool:
    """Scenes ready to train on: normalised latents ``[n, 8, 16, 16]`` (fp16) and ids ``[n, captions, 32]``."""

    latents: Tensor
    ids: Tensor

    @classmethod
    def make(cls, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, path: Path, count: int, seed: int = 21) -> Pool:
        """Render, encode and tokenize ``count`` scenes, or read them from ``path`` when an earlier call left them."""
        if path.is_file():
            stored = load_file(path)
            return cls(stored["latents"], stored["ids"])
        device = vae.device
        latents, captions = [], []
        for start in range(0, count, 128):
            scenes = [training_example(random.Random(f"{seed}:{i}"), CAPTIONS) for i in range(start, min(start + 128, count))]
            x = torch.from_numpy(np.stack([render(scene) for scene, _ in scenes])).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
            with torch.no_grad():
                z = vae.encode(x).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
            latents.append(((z - vae.config["shift_factor"]) * vae.config["scaling_factor"]).half().cpu())
            captions += [text for _, texts in scenes for text in texts]
        encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=generator.TEXT_LENGTH, return_tensors="pt")
        ids = encoded["input_ids"].view(count, CAPTIONS, -1).to(torch.int16)  # pyright: ignore[reportAttributeAccessIssue]
        pool = cls(torch.cat(latents).contiguous(), ids)
        save_file({"latents": pool.latents, "ids": pool.ids}, path)
        return pool


class TransformerTask:
    """Rectified flow on (latents, caption): ``h_t = (1 - t) h + t e``, target ``e - h`` (method.md A3), logit-normal ``t``.

    Micro-batches hold captions of similar length, cut after the longest; an eighth of them are padded to the full length
    that sampling uses, so that the padding means nothing.
    """

    name = "transformer"
    seed = 31
    average = 0.998

    def __init__(
        self, vae: AutoencoderKL, folder: Path, device: str = "cpu", scenes: int = 60_000, batch: int = 64, micro: int = 32
    ) -> None:
        torch.manual_seed(self.seed)
        self.vae, self.device, self.batch, self.micro = vae, device, batch, micro
        self.tokenizer = generator.build_tokenizer(vocabulary())
        clip, t5 = generator.build_text_encoders(self.tokenizer)
        self.model = nn.ModuleDict({"transformer": generator.build_transformer(), "clip": clip, "t5": t5}).to(device)
        self.pool = Pool.make(vae, self.tokenizer, folder / "pool.safetensors", scenes)
        self.ids = generator.image_ids(8, 8).to(device)
        self.empty = torch.tensor(self.tokenizer("", padding="max_length", max_length=generator.TEXT_LENGTH)["input_ids"])

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon on the blocks' matrices, AdamW on modulations, embeddings, vectors and text encoders."""
        matrices = [
            p for n, p in self.model["transformer"].named_parameters() if p.ndim == 2 and "transformer_blocks" in n and "norm" not in n
        ]
        known = {id(p) for p in matrices}
        rest = [p for p in self.model.parameters() if id(p) not in known]
        return [Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.97), weight_decay=1e-4, fused=True)]

    def backward(self, step: Step) -> float:
        """One batch in micro-batches of similar caption length."""
        g = step.torch
        chosen = torch.randint(0, len(self.pool.latents) - HELD_OUT, (self.batch,), generator=g)
        ids = self.pool.ids[chosen, torch.randint(0, CAPTIONS, (self.batch,), generator=g)].long()
        ids = torch.where(torch.rand(self.batch, 1, generator=g) < UNCONDITIONAL, self.empty, ids)
        order = (ids > 0).sum(1).argsort()
        total = 0.0
        for part in order.split(self.micro):
            length = _length(ids[part], step.python)
            t = torch.sigmoid(torch.randn(len(part), generator=g) + 0.2)
            noise = torch.randn(len(part), 64, 32, generator=g)
            loss = self.loss(self.model, self.latents(chosen[part]), ids[part, :length], t, noise) * (len(part) / self.batch)
            loss.backward()
            total += loss.item()
        return total

    def latents(self, index: Tensor) -> Tensor:
        """Packed latents of these scenes, ``[n, 64, 32]``."""
        return generator.pack(self.pool.latents[index].float()).to(self.device)

    def loss(self, model: nn.Module, latents: Tensor, ids: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the velocity."""
        t, noise = t.to(self.device), noise.to(self.device)
        noisy = (1 - t)[:, None, None] * latents + t[:, None, None] * noise
        velocity = self.velocity(model, noisy, t, *self.encode(model, ids.to(self.device)))
        return (velocity.float() - (noise - latents)).square().mean()

    def encode(self, model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
        """T5's sequence and CLIP's pooled vector."""
        with self._precision():
            return model["t5"](ids)[0], model["clip"](ids).pooler_output  # pyright: ignore[reportIndexIssue]

    def velocity(self, model: nn.Module, noisy: Tensor, t: Tensor, sequence: Tensor, pooled: Tensor) -> Tensor:
        """The transformer's prediction, ``[batch, 64, 32]``."""
        with self._precision():
            return model["transformer"](  # pyright: ignore[reportIndexIssue]
                hidden_states=noisy,
                timestep=t,
                encoder_hidden_states=sequence,
                pooled_projections=pooled,
                img_ids=self.ids,
                txt_ids=torch.zeros(sequence.shape[1], 3, device=self.device),
                return_dict=False,
            )[0]

    def _precision(self) -> torch.autocast:
        """bfloat16 on a GPU; on a CPU the casts cost more than they save at this width (measured)."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu")

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Loss on 256 held-out scenes at fixed times and noise."""
        g = torch.Generator().manual_seed(9)
        t, noise = torch.sigmoid(torch.randn(HELD_OUT, generator=g)), torch.randn(HELD_OUT, 64, 32, generator=g)
        index = torch.arange(len(self.pool.latents) - HELD_OUT, len(self.pool.latents))
        parts = torch.arange(HELD_OUT).split(32)
        losses = [self.loss(average, self.latents(index[p]), self.pool.ids[index[p], 0].long(), t[p], noise[p]).item() for p in parts]
        return {"validation": float(np.mean(losses))}

    def export(self, average: nn.Module, folder: Path) -> None:
        """Save the whole pipeline."""
        parts = copy.deepcopy(average)
        generator.assemble(self.vae, parts["clip"], parts["t5"], parts["transformer"], self.tokenizer).save_pretrained(folder)  # pyright: ignore


class GuidanceTask(TransformerTask):
    """Classifier-free guidance distilled: the student's one forward equals the teacher's guided two (as in FLUX.1-dev)."""

    name = "guided"
    seed = 41
    average = 0.99

    def __init__(self, vae: AutoencoderKL, folder: Path, teacher: nn.Module, *, guidance: float = GUIDANCE, **options: int | str) -> None:
        super().__init__(vae, folder, **options)  # pyright: ignore[reportArgumentType]
        self.guidance = guidance
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False).to(self.device)
        self.model.load_state_dict(teacher.state_dict())
        self.model["clip"].requires_grad_(False)
        self.model["t5"].requires_grad_(False)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """A fifth of the training's rates, on the transformer alone."""
        optimizers = super().optimizers()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.2
                group["params"] = [p for p in group["params"] if p.requires_grad]
        return optimizers

    def loss(self, model: nn.Module, latents: Tensor, ids: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Distance to ``v(empty) + guidance (v(caption) - v(empty))`` of the teacher."""
        t, noise, ids = t.to(self.device), noise.to(self.device), ids.to(self.device)
        noisy = (1 - t)[:, None, None] * latents + t[:, None, None] * noise
        with torch.no_grad():
            conditional = self.encode(self.teacher, ids)
            blank = [x.expand(len(ids), *x.shape[1:]) for x in self.encode(self.teacher, self.empty[None, : ids.shape[1]].to(self.device))]
            guided = self.velocity(self.teacher, noisy, t, *conditional).float()
            plain = self.velocity(self.teacher, noisy, t, *blank).float()
            target = plain + self.guidance * (guided - plain)
        return (self.velocity(model, noisy, t, *conditional).float() - target).square().mean()


def _length(ids: Tensor, rng: random.Random) -> int:
    longest = int((ids > 0).sum(1).max())
    return ids.shape[1] if rng.random() < 0.125 else min(ids.shape[1], longest + rng.randint(0, 3))
