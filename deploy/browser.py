"""The Chromium that the browser tests drive: an installed one, Debian's package, or Playwright's own.

``python -m deploy.browser`` prints its path, and installs it first where there is none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from deploy import system

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
PACKAGES = ("chromium", "libatomic1")
"""Debian's: the browser, and a library that the Node.js of Playwright's driver needs."""
ADVICE = (
    "The browser tests need Chromium (or Google Chrome) and libatomic.so.1: install them "
    f"(Debian: apt-get install {' '.join(PACKAGES)}), then run `make browser` again."
)


def installed() -> Path | None:
    """The browser that is installed: one on the PATH, else Playwright's own where its driver starts."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return Path(found)
    if not driver_starts():
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
    return own if own.is_file() else None


def driver_starts() -> bool:
    """Whether Playwright's driver, which the tests need with any browser, starts on this machine."""
    return _playwright("--version") == 0


def install(root: bool) -> None:
    """Install Debian's packages for root where apt-get is there; if that gives no browser, Playwright's own."""
    system.install(list(PACKAGES), root)
    if installed() is None and driver_starts():
        _playwright("install", "chromium")


def _playwright(*arguments: str) -> int:
    """The exit status of Playwright's command. Its stack traces of JavaScript are not shown: `ADVICE` replaces them."""
    command = [sys.executable, "-m", "playwright", *arguments]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode


def main(*, root: bool) -> int:
    """Print the browser's path; 1 where a browser or the driver is missing and cannot be installed."""
    if (browser := installed()) is None or not driver_starts():
        install(root)
        browser = installed() if driver_starts() else None
    print(browser or ADVICE, file=sys.stdout if browser else sys.stderr)
    return 0 if browser else 1


if __name__ == "__main__":
    sys.exit(main(root=system.is_root()))
