"""The paper's Table 2 over several seeds: differential training against naive training on the same pairs.

    python benchmarks/differential.py [--seeds 1000 2000 3000] [--spec configs/artaug-vista.yaml] [--runs runs]

For every seed one iteration of the spec is run (other pictures, so other pairs and other adapters), both trainings take the same
pairs, steps and learning rate, and each is fused with the alpha that is best for it on the tuning prompts. The results are those
on the held-out prompts. Prints a table of means and standard deviations, and the lead of differential training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

METRICS = ("aesthetic", "pickscore", "mps", "clip")


def run(spec: Path, seed: int, runs: Path) -> dict[str, dict[str, float]]:
    """``comparison`` of one iteration from this seed; finished ones are only read."""
    content = yaml.safe_load(spec.read_text(encoding="utf-8"))
    content["name"] = f"{content['name']}-seed-{seed}"
    content["prompts"]["seed"] = seed
    content["stop"] = {**content.get("stop", {}), "max_iterations": 1}
    content["compare"] = True
    for part in ("prompts", "tune", "evaluate"):
        for key in ("file", "ceiling"):
            if key in content[part]:
                content[part][key] = str((spec.parent / content[part][key]).resolve())
    runs.mkdir(parents=True, exist_ok=True)
    path = runs / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    line = [sys.executable, "-m", "sfumato.cli.main", "run", str(path), "--runs", str(runs), "--json"]
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout)["comparison"]


def main() -> None:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 2000, 3000])
    parser.add_argument("--spec", type=Path, default=Path("configs/artaug-vista.yaml"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    found = [run(asked.spec, seed, asked.runs) for seed in asked.seeds]
    print(f"{'':<12}{'differential':>22}{'naive':>22}{'lead, seed by seed':>30}")
    for metric in METRICS:
        columns = {way: [comparison[way][metric] for comparison in found] for way in ("differential", "naive")}
        cells = [f"{statistics.mean(values):.2f} ± {_spread(values):.2f}" for values in columns.values()]
        leads = [f"{d - n:+.2f}" for d, n in zip(columns["differential"], columns["naive"], strict=True)]
        print(f"{metric:<12}{cells[0]:>22}{cells[1]:>22}{' '.join(leads):>30}")


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
