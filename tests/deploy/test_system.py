"""The check of what the operating system must have: Debian's packages are installed by root, else one line says what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import system


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without programs; the folder that it names."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_machine_that_has_everything_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert system.main(["--tests"], root=True) == 0
    assert capfd.readouterr() == ("", "")


def test_where_nothing_can_be_installed_one_line_says_what_is_missing(bare: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert system.main(["--tests"], root=True) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "apt-get install curl" in said
    assert system.main([], root=True) == 0, "programs are for the tests only"


def test_another_user_is_told_although_apt_get_is_there(bare: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _program(bare / "apt-get", f'echo "$@" >> {bare / "log"}')
    assert system.main(["--tests"], root=False) == 1
    assert "apt-get install curl" in capfd.readouterr().err and not (bare / "log").exists()


def test_root_gets_debians_package(bare: Path) -> None:
    _program(bare / "apt-get", f'echo "$@" >> {bare / "log"}; echo > {bare / "curl"}; /bin/chmod +x {bare / "curl"}')
    assert system.main(["--tests"], root=True) == 0
    assert (bare / "log").read_text().splitlines() == ["-qq update", "-qq install --yes --no-install-recommends curl"]


def test_a_library_that_does_not_load_is_missing() -> None:
    assert system.missing(tests=False, libraries={"libnothing.so.99": "libnothing"}) == ["libnothing"]
