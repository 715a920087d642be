"""What the environment in .venv needs of the operating system: a library of vLLM's CPU build, and programs that the tests call.

``python -m deploy.system`` checks the library, with ``--tests`` the programs too. As root with apt-get it installs Debian's packages of
those that are missing; otherwise it says in one line what to install.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

LIBRARIES = {"libnuma.so.1": "libnuma1"}
"""A shared library -> Debian's package."""
PROGRAMS = {"curl": "curl"}
"""A program of the documentation's examples, which the tests run -> Debian's package."""


def missing(*, tests: bool, libraries: Mapping[str, str] = LIBRARIES) -> list[str]:
    """Debian's packages of what is not there."""
    packages = [package for library, package in libraries.items() if not _loads(library)]
    return packages + [package for program, package in PROGRAMS.items() if tests and not shutil.which(program)]


def is_root() -> bool:
    """Whether this process may install packages."""
    return os.geteuid() == 0


def install(packages: list[str], root: bool) -> None:
    """Install Debian's packages for root where apt-get is there; nothing elsewhere."""
    if root and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=sys.stderr, check=False)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def main(arguments: list[str], *, root: bool) -> int:
    """Check, install what can be installed, and check again; 1 where anything is missing still."""
    tests = "--tests" in arguments
    if sys.platform != "linux" or not (packages := missing(tests=tests)):
        return 0
    install(packages, root)
    if left := missing(tests=tests):
        print(f"Missing on this machine: install them (Debian: apt-get install {' '.join(left)}), then try again.", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], root=is_root()))
