"""The cost of compression by QR and a small SVD, against forming the update and ``torch.linalg.svd``; one run, so ratios compare.

Run ``python benchmarks/compress.py``. The mean of 50 adapters of rank 16 has rank 800; it is compressed to ``--rank``, at FLUX.1-dev's
layer shapes, one layer of a shape. The dense way is taken at the attention's shape (3072 x 3072) only, unless ``--dense-all``; of the
other shapes' layers the seconds by QR are given. Factors decay like a trained LoRA's, share a common part like those of one run, and
are float32. Seconds are of the processor, on one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor

from sfumato.lora.adapter import Adapter, compress, mean

# out x in, and how many linears of FLUX.1-dev's 19 double and 38 single blocks have it.
SHAPES: dict[str, tuple[int, int, int]] = {
    "attention": (3072, 3072, 19 * 8 + 38 * 3),
    "mlp up": (12288, 3072, 19 * 2 + 38),
    "mlp down": (3072, 12288, 19 * 2),
    "single out": (3072, 15360, 38),
    "modulation": (18432, 3072, 19 * 2),
    "single modulation": (9216, 3072, 38),
}


def adapters(shape: tuple[int, int], count: int, rank: int) -> list[Adapter]:
    """``count`` adapters of one layer: half of each update is common to all, singular values fall by half every two."""
    generator = torch.Generator().manual_seed(0)
    decay = 0.5 ** (torch.arange(rank) / 2)

    def pair() -> tuple[Tensor, Tensor]:
        a, b = torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator)
        return a * decay[:, None].sqrt(), b * decay.sqrt()

    common_a, common_b = pair()
    made = []
    for _ in range(count):
        a, b = pair()
        made.append(Adapter({"layer": (common_a + a, common_b + b)}))
    return made


def dense(whole: Adapter, rank: int) -> tuple[Tensor, Tensor]:
    """The usual way: the update in float32, its full SVD, truncated."""
    a, b = whole.factors["layer"]
    u, s, vh = torch.linalg.svd(b @ a, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def error(whole: Adapter, a: Tensor, b: Tensor) -> float:
    """Relative error of the truncated update, dense and in float64: the same measure for both ways."""
    full_a, full_b = whole.factors["layer"]
    update = full_b.double() @ full_a.double()
    return float((update - b.double() @ a.double()).norm() / update.norm())


def measure(name: str, count: int, rank: int, kept: int, with_dense: bool) -> dict[str, Any]:
    """Seconds and errors of one layer."""
    rows, columns, layers = SHAPES[name]
    whole = mean(adapters((rows, columns), count, rank))
    started = time.process_time()
    result = compress(whole, kept)
    seconds = time.process_time() - started
    row: dict[str, Any] = {"shape": [rows, columns], "layers": layers, "qr_seconds": round(seconds, 2), "qr_reported_error": result.error}
    if with_dense:
        started = time.process_time()
        a, b = dense(whole, kept)
        slow = time.process_time() - started
        row |= {"dense_seconds": round(slow, 2), "qr_to_dense": round(seconds / slow, 4)}
        row |= {"dense_error": error(whole, a, b), "qr_error": error(whole, *result.adapter.factors["layer"])}
    return row


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--adapter-rank", type=int, default=16)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dense-all", action="store_true", help="the dense SVD at every shape")
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layers = {
        name: measure(name, options.adapters, options.adapter_rank, options.rank, name == "attention" or options.dense_all)
        for name in options.shapes
    }
    total = sum(row["qr_seconds"] * row["layers"] for row in layers.values())
    report = {"threads": options.threads, "rank": options.rank, "shapes": layers, "qr_seconds_of_all_layers": round(total)}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
