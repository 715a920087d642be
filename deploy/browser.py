"""The Chromium that the browser tests drive: an installed one, Debian's package, or Playwright's own.

``python -m deploy.browser`` prints its path, and installs it first where there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",  # as root Chromium does not start without it
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""How the tests start it."""
ADVICE = "No Chromium: install a package `chromium` or `google-chrome` (Debian: apt-get install chromium), then run `make browser` again."


def installed() -> Path | None:
    """The browser that is installed: one on the PATH, else Playwright's own."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return Path(found)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
    return own if own.is_file() else None


def install() -> None:
    """Install Debian's package where this is root and apt-get is there; if that gives none, Playwright's browser."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=sys.stderr, check=False)
    if installed() is None:
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        subprocess.run(command, stdout=sys.stderr, stderr=subprocess.DEVNULL, check=False)  # a stack of JavaScript; `ADVICE` stands for it


def main() -> int:
    """Print the browser's path; 1 where none is installed and none can be."""
    if (browser := installed()) is None:
        install()
        browser = installed()
    print(browser or ADVICE, file=sys.stdout if browser else sys.stderr)
    return 0 if browser else 1


if __name__ == "__main__":
    sys.exit(main())
