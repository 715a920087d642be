"""Training of the Vista autoencoder on rendered scenes."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sfumato.vista.generator import build_autoencoder
from sfumato.vista.training.loop import Step
from sfumato.vista.training.optim import Muon
from sfumato.vista.training.precision import autocast
from sfumato.vista.world import KINDS, render, sample_scene, with_finish

KL_WEIGHT = 1e-3
GRADIENT_WEIGHT = 0.5


def pictures(rng: random.Random, count: int) -> Tensor:
    """Rendered scenes in mixed finishes, ``[count, 3, 64, 64]`` in -1 to 1."""
    images = []
    for _ in range(count):
        share = rng.choice((0.0, 0.5, 0.5, 1.0))
        images.append(render(with_finish(sample_scene(rng), {kind: rng.random() < share for kind in ("sky", *KINDS)})))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class AutoencoderTask:
    """L1, squared error, image gradients and a small KL term; Muon on the kernels."""

    name = "vae"
    seed = 11
    average = 0.998

    def __init__(self, device: str = "cpu", batch: int = 32) -> None:
        torch.manual_seed(self.seed)
        self.model = build_autoencoder()
        nn.Module.to(self.model, device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.device, self.batch = device, batch
        self.held_out = pictures(random.Random("vae held out"), 128)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon on inner kernels, AdamW on the first and last and on vectors."""
        inner = [p for n, p in self.model.named_parameters() if p.ndim == 4 and "conv_in" not in n and "conv_out" not in n]
        known = {id(p) for p in inner}
        rest = [p for p in self.model.parameters() if id(p) not in known]
        return [Muon(inner, lr=0.03), torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)]

    def backward(self, step: Step) -> float:
        """One batch of fresh scenes."""
        x = pictures(step.python, self.batch).to(self.device, memory_format=torch.channels_last)
        with autocast(self.device):
            posterior = self.model.encode(x).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
            noise = torch.randn(posterior.mean.shape, generator=step.torch).to(self.device)
            y = self.model.decode(posterior.mean + posterior.std * noise).sample.float()  # pyright: ignore[reportAttributeAccessIssue]
        mean, variance, logvar = posterior.mean.float(), posterior.var.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + variance - 1 - logvar).mean()
        loss = (y - x).abs().mean() + F.mse_loss(y, x) + GRADIENT_WEIGHT * _gradient_error(x, y) + KL_WEIGHT * kl
        loss.backward()
        return loss.item()

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Peak signal-to-noise ratio of 128 held-out pictures, in dB."""
        assert isinstance(average, AutoencoderKL)
        errors = [(reconstruct(average, x) - x).div(2).square().mean((1, 2, 3)) for x in self.held_out.to(self.device).split(32)]
        return {"psnr": float(-10 * torch.log10(torch.cat(errors)).mean())}

    @torch.no_grad()
    def export(self, average: nn.Module, folder: Path) -> None:
        """Save with the latents' scale and shift measured, so that the transformer sees unit variance."""
        assert isinstance(average, AutoencoderKL)
        vae = copy.deepcopy(average)
        x = pictures(random.Random("vae statistics"), 1024).to(self.device)
        z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(64)])  # pyright: ignore[reportAttributeAccessIssue]
        vae.register_to_config(scaling_factor=float(1 / z.std()), shift_factor=float(z.mean()))
        vae.save_pretrained(folder)


def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Encode to the mean and decode, clipped to -1 to 1."""
    return vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)  # pyright: ignore[reportAttributeAccessIssue]


def _gradient_error(x: Tensor, y: Tensor) -> Tensor:
    across = (y[..., 1:] - y[..., :-1]) - (x[..., 1:] - x[..., :-1])
    down = (y[..., 1:, :] - y[..., :-1, :]) - (x[..., 1:, :] - x[..., :-1, :])
    return across.abs().mean() + down.abs().mean()
