"""Where models lie: folders, the hub's cache, and what is neither. No test asks the network."""

from pathlib import Path

import pytest

from sfumato.errors import InvalidInput, MissingWeights
from sfumato.runtime.models.hub import cached, is_hub_name, located

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and a hub that does not answer."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def _put(cache: Path, reference: str, *files: str) -> Path:
    """A model in the cache, laid out as the hub's own client does."""
    folder = cache / f"models--{reference.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for name in files:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text("{}")
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_folder_is_where_it_is(tmp_path: Path) -> None:
    assert cached(str(tmp_path)) == located(str(tmp_path)) == tmp_path.resolve()


def test_a_model_in_the_cache_is_found_there(cache: Path) -> None:
    snapshot = _put(cache, "somebody/painter", "model_index.json", "vae/config.json")
    assert cached("somebody/painter") == located("somebody/painter") == snapshot


def test_a_model_that_is_not_here_would_have_to_be_fetched() -> None:
    assert cached("somebody/painter") is None


def test_without_a_network_it_is_said_what_to_do() -> None:
    with pytest.raises(MissingWeights, match="somebody/painter is not on this machine.*hf auth login"):
        located("somebody/painter")


@pytest.mark.parametrize("reference", ["", "nowhere", "./weights/aesthetic", "../models/x", "/models/x", "a/b/c", "owner/na me"])
def test_what_cannot_be_a_name_is_refused(reference: str) -> None:
    assert not is_hub_name(reference)
    with pytest.raises(InvalidInput, match="neither a folder nor a name on the hub"):
        cached(reference)


@pytest.mark.parametrize("reference", ["owner/na..me", "owner/name-", "owner/name.git"])
def test_what_the_hub_would_not_take_is_refused(reference: str) -> None:
    with pytest.raises(InvalidInput, match="hub"):
        cached(reference)


def test_a_folder_hides_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somebody" / "painter").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name("somebody/painter")
    assert cached("somebody/painter") == tmp_path / "somebody" / "painter"


def test_unused_weights_are_not_requested() -> None:
    """The patterns on the listing of a repository that has everything twice, as FLUX.1-dev and Stable Diffusion have."""
    from huggingface_hub.utils import filter_repo_objects

    from sfumato.runtime.models.hub import UNWANTED, WANTED

    needed = ["model_index.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer_2/spiece.model", "vae/config.json"]
    scorer = ["config.json", "model.safetensors", "merges.txt", "preprocessor_config.json"]
    spare = ["flux1-dev.safetensors", "ae.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.bin", "picture.jpg"]
    chosen = filter_repo_objects([*needed, *scorer, *spare], allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED))
    assert list(chosen) == [*needed, *scorer]
