"""Which browser the browser tests get: an installed one, Debian's package, Playwright's own, or one line that says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy import browser


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of the PATH, and no browser of Playwright's; none can be downloaded."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    (tmp_path / "file").touch()
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "file"))  # `playwright install` fails at once
    return folder


@pytest.fixture
def driverless(empty: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a driver that ends as Node.js does where libatomic.so.1 is missing, until the file ``libatomic`` is there."""
    node = empty / "node"
    _program(node, f"[ -e {empty / 'libatomic'} ] || exit 127")
    monkeypatch.setenv("PLAYWRIGHT_NODEJS_PATH", str(node))
    return empty


@pytest.mark.parametrize("name", browser.NAMES)
def test_an_installed_browser_is_taken(empty: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert browser.installed() is None
    _program(empty / name, "exit 0")
    assert browser.main(root=True) == 0
    assert capsys.readouterr().out == f"{empty / name}\n"


def test_playwrights_own_is_taken_where_none_is_on_the_path(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "browsers"))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
    assert own.is_relative_to(tmp_path / "browsers")
    own.parent.mkdir(parents=True)
    _program(own, "exit 0")
    assert browser.installed() == own


def test_root_gets_debians_packages(empty: Path) -> None:
    log = _with_apt(empty)
    assert browser.main(root=True) == 0
    assert log.read_text().splitlines() == APT


@pytest.mark.parametrize("found", [True, False], ids=["with a browser", "without"])
def test_root_gets_what_the_driver_needs(driverless: Path, found: bool) -> None:
    if found:
        _program(driverless / "chromium", "exit 0")
    log = _with_apt(driverless)
    assert browser.main(root=True) == 0
    assert log.read_text().splitlines() == APT


def test_no_driver_is_started_to_find_an_installed_browser(driverless: Path) -> None:
    assert browser.installed() is None
    _program(driverless / "chromium", "exit 0")
    assert browser.installed() == driverless / "chromium"


def test_where_none_can_be_installed_one_line_says_what_to_do(empty: Path) -> None:
    assert _said() == browser.ADVICE + "\n"


@pytest.mark.parametrize("found", [True, False], ids=["with a browser", "without"])
def test_where_the_driver_does_not_start_one_line_says_what_to_do(driverless: Path, found: bool) -> None:
    if found:
        _program(driverless / "chromium", "exit 0")
    assert _said() == browser.ADVICE + "\n"


APT = ["-qq update", "-qq install --yes --no-install-recommends chromium libatomic1"]


def _with_apt(folder: Path) -> Path:
    """The log of an apt-get that installs ``chromium`` and ``libatomic`` into the folder."""
    log, chromium = folder / "log", folder / "chromium"
    installs = f"echo > {folder / 'libatomic'}; echo > {chromium}; /bin/chmod +x {chromium}"
    _program(folder / "apt-get", f'echo "$@" >> {log}; if [ "$2" = install ]; then {installs}; fi')
    return log


def _said() -> str:
    """What the program says where it fails."""
    ended = subprocess.run([sys.executable, "-m", "deploy.browser"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    return ended.stderr


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
