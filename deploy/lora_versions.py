"""Tests adapter files in the lowest and the newest versions of diffusers and PEFT that ``pyproject.toml`` promises.

``python -m deploy.lora_versions [--torch-index ADDRESS] [lowest] [newest]`` makes an environment of its own for each end under
``.venvs/``, runs ``tests/unit/lora`` in it, and prints one line of versions and outcome for each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venvs"
PROMISED = ("diffusers", "peft")
EXTRAS = "generator,grounding,registry,grpc"
"""Extras that the modules under test, and the fixtures beside them, import."""
TESTS = ("pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.120")
TORCH = "torch==2.13.0"
"""As in `make setup`; PyTorch's version is not what is tested."""
ENDS = ("lowest", "newest")


def promised() -> dict[str, Requirement]:
    """What ``pyproject.toml`` asks of diffusers and PEFT, by name; every extra asks the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = {Requirement(line) for lines in project["optional-dependencies"].values() for line in lines}
    found = {name: {each for each in requirements if each.name == name} for name in PROMISED}
    for name, asked in found.items():
        if len(asked) != 1:
            raise SystemExit(f"pyproject.toml: the extras ask for {name} as {sorted(map(str, asked))}; they must ask the same.")
    return {name: asked.pop() for name, asked in found.items()}


def pins(end: str) -> list[str]:
    """The requirements of one end: the lowest version exactly, or the newest that the promise allows."""
    if end == "newest":
        return [str(requirement) for requirement in promised().values()]
    return [f"{name}=={_lowest(requirement)}" for name, requirement in promised().items()]


def _lowest(requirement: Requirement) -> str:
    return next(specifier.version for specifier in requirement.specifier if specifier.operator == ">=")


def prepare(end: str, torch_index: str) -> Path:
    """Make the environment of one end, or bring an existing one up to date; the path of its Python."""
    python = ENVIRONMENTS / f"lora-{end}" / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    index = ["--index-url", torch_index] if torch_index else []
    _pip(python, TORCH, "-c", str(ROOT / "constraints.txt"), *index)
    _pip(python, "--upgrade", "-e", f"{ROOT}[{EXTRAS}]", TORCH, *pins(end), *TESTS)
    install = "from sfumato.torchvision_ops import install_for_all; install_for_all()"
    subprocess.run([str(python), "-c", install], check=True, cwd=ROOT)
    return python


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True, cwd=ROOT)


def tested(python: Path) -> bool:
    """Whether the tests of adapter files pass in an environment. Warnings of other versions than the product's are no errors."""
    line = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "tests/unit/lora"]
    return subprocess.run(line, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == 0


def versions(python: Path) -> str:
    """The versions in an environment, for people."""
    names = ("diffusers", "peft", "transformers", "torch")
    code = f"from importlib.metadata import version; print(', '.join(f'{{name}} {{version(name)}}' for name in {names}))"
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main(arguments: Sequence[str]) -> int:
    """Test the ends that are named, or both; the exit status is 1 where a test fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ends", nargs="*", choices=[*ENDS, []], help="lowest, newest; both if none is named")
    parser.add_argument("--torch-index", default="", help="address of PyTorch's index of CPU wheels, as for `make setup`")
    options = parser.parse_args(arguments)
    outcomes = {}
    for end in options.ends or ENDS:
        python = prepare(end, options.torch_index)
        passed = tested(python)
        outcomes[f"{end}: {versions(python)}"] = passed
    for line, passed in outcomes.items():
        print(f"{line}: {'passed' if passed else 'FAILED'}")
    return 0 if all(outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
