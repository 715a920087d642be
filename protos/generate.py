"""Writes what is generated from the contract: ``python protos/generate.py`` (``make protos``). The same bytes every time.

``sfumato/v1/*_pb2.py``, ``.pyi`` and ``*_pb2_grpc.py``. The rules' own ``buf/validate/validate.proto`` comes out of the installed
package protovalidate, so that contract and validator are of one version; its messages become ``sfumato/v1/validate_pb2.py``,
because a package that is called ``buf`` is not ours to install.

``python protos/generate.py --release`` also takes the contract as released: from then on nothing may be removed from it or changed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from protobuf import DescFile
from protovalidate import ViolationPb

PROTOS = Path(__file__).parent
ROOT = PROTOS.parent
RELEASED = PROTOS / "released.binpb"
RULES = "buf/validate/validate.proto"
HEADER = b'"""The contract in Python, generated from protos/ by protos/generate.py. Do not edit."""\n'


def generate(root: Path) -> list[Path]:
    """Write all generated files below ``root``; their paths relative to it."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        _protoc([f"--python_out={out}"], [*sources(), RULES])
        _protoc([f"--pyi_out={out}"], sources())
        _protoc([f"--grpc_python_out={out}"], [name for name in sources() if "\nservice " in (PROTOS / name).read_text()])
        target = root / "sfumato" / "v1"
        target.mkdir(parents=True, exist_ok=True)
        for path in [*sorted((out / "buf" / "validate").iterdir()), *sorted((out / "sfumato" / "v1").iterdir())]:
            text = path.read_text().replace("from buf.validate import validate_pb2", "from sfumato.v1 import validate_pb2")
            (target / path.name).write_text(text)
        (target / "__init__.py").write_bytes(HEADER)
        return sorted(path.relative_to(root) for path in target.iterdir() if path.is_file())


def describe(path: Path, *, comments: bool = False) -> None:
    """Write the contract and all that it imports as a FileDescriptorSet, with its comments for who wants to check them."""
    _protoc([f"--descriptor_set_out={path}", "--include_imports", *(["--include_source_info"] if comments else [])], sources())


def sources() -> list[str]:
    """The contract's files, relative to `PROTOS`."""
    return sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))


def _protoc(options: list[str], files: list[str]) -> None:
    """Run grpcio-tools' compiler, which knows the rules' file from the validator itself."""
    with tempfile.TemporaryDirectory() as scratch:
        rules = Path(scratch) / "rules.binpb"
        rules.write_bytes(_with_dependencies(ViolationPb.desc().file))
        line = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={rules}", f"-I{PROTOS}", *options, *files]
        subprocess.run(line, check=True)


def _with_dependencies(file: DescFile) -> bytes:
    """A FileDescriptorSet of the file and all that it imports, each once and after what it imports."""
    known: dict[str, bytes] = {}

    def visit(file: DescFile) -> None:
        for dependency in file.dependencies:
            visit(dependency)
        known.setdefault(file.name, file.proto.to_binary())

    visit(file)
    return FileDescriptorSet(file=[FileDescriptorProto.FromString(data) for data in known.values()]).SerializeToString(deterministic=True)


def main() -> None:
    """Generate into this checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", action="store_true", help="take the contract as released")
    for path in generate(ROOT):
        print(path)
    if parser.parse_args().release:
        describe(RELEASED)
        print(RELEASED.relative_to(ROOT))


if __name__ == "__main__":
    main()
