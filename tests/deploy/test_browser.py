"""Which browser the browser tests get: an installed one, Debian's package, Playwright's own, or one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import browser


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of the PATH, and no browser of Playwright's; its downloads are refused."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "browsers"))
    monkeypatch.setenv("PLAYWRIGHT_DOWNLOAD_HOST", "http://127.0.0.1:9")
    return folder


@pytest.mark.parametrize("name", browser.NAMES)
def test_an_installed_browser_is_taken(empty: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert browser.installed() is None
    _program(empty / name, "exit 0")
    assert browser.main() == 0
    assert capsys.readouterr().out == f"{empty / name}\n"


def test_playwrights_own_is_taken_where_none_is_on_the_path(empty: Path, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
    assert own.is_relative_to(tmp_path / "browsers")
    own.parent.mkdir(parents=True)
    _program(own, "exit 0")
    assert browser.installed() == own


def test_root_gets_debians_package(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    log, chromium = empty / "log", empty / "chromium"
    _program(empty / "apt-get", f'echo "$@" >> {log}; if [ "$2" = install ]; then echo > {chromium}; /bin/chmod +x {chromium}; fi')
    assert browser.main() == 0
    assert log.read_text().splitlines() == ["-qq update", "-qq install --yes --no-install-recommends chromium"]


def test_where_none_can_be_installed_one_line_says_what_to_do(empty: Path) -> None:
    ended = subprocess.run([sys.executable, "-m", "deploy.browser"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-1] == browser.ADVICE


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
