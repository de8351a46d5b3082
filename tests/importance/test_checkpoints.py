"""One checkpoint has one fingerprint and one prior, whatever it is called; another one has others."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foveate.importance import AttentionPrior, checkpoints, default_prior_path, find_prior
from foveate.importance.checkpoints import checkpoint_folder, weights_fingerprint
from foveate.importance.measured import cache_folder


def saved(folder: Path, seed: int = 0, **changed: torch.Tensor) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(50, 40, generator=generator) for name in ("first", "second", "third")}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, **changed}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(params=["whole", "sampled"], autouse=True)
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "sampled":
        monkeypatch.setattr(checkpoints, "_WHOLE", 0)


def test_the_place_and_what_lies_beside_it_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "a" / "m")
    print_of = weights_fingerprint(folder)
    monkeypatch.chdir(tmp_path / "a")
    assert weights_fingerprint(Path("m")) == weights_fingerprint(Path("./m/")) == print_of
    copy = shutil.copytree(folder, tmp_path / "other")
    AttentionPrior(torch.ones(2, 2), 2, "m", 1, "p").save(copy / "foveate-prior-layer2.safetensors")
    (copy / "adapter_model.safetensors").write_bytes(b"x")
    (copy / "config.json").write_text("{}")
    assert weights_fingerprint(copy) == print_of
    assert weights_fingerprint(tmp_path) == ""


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    prints = [weights_fingerprint(saved(tmp_path / "0"))]
    prints.append(weights_fingerprint(saved(tmp_path / "1", seed=1)))
    for name in ("first", "second", "third"):  # one tensor alone
        prints.append(weights_fingerprint(saved(tmp_path / name, **{name: torch.zeros(50, 40)})))
    prints.append(weights_fingerprint(saved(tmp_path / "half", third=torch.zeros(50, 40).half())))
    prints.append(weights_fingerprint(saved(tmp_path / "more", fourth=torch.zeros(1))))
    assert len(set(prints)) == len(prints)


def test_shards_and_pickles_count(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    before = weights_fingerprint(folder)
    save_file({"last": torch.ones(3)}, folder / "model-00002-of-00002.safetensors")
    assert weights_fingerprint(folder) != before
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    prints = set()
    for content in (bytes(range(256)) * 99, bytes(reversed(range(256))) * 99, b""):
        (pickled / "pytorch_model.bin").write_bytes(content)
        prints.add(weights_fingerprint(pickled))
    assert len(prints) == 3


def test_a_damaged_file_has_a_fingerprint(tmp_path: Path) -> None:
    for content in (b"\xff" * 300, b"", b"\x02\0\0\0\0\0\0\0[]" * 9):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert len(weights_fingerprint(tmp_path)) == 16


def test_a_prior_belongs_to_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    for place, seed in (("A", 0), ("B", 1)):
        saved(tmp_path / place / "m", seed)
    monkeypatch.chdir(tmp_path / "A")
    AttentionPrior(torch.ones(2, 2), 2, "m", 1, "p").save(default_prior_path("m", 2))
    for name in ("m", "./m/", "../A/m", str(tmp_path / "A" / "m")):
        assert find_prior(name, 2) is not None
    assert find_prior("m", 3) is None
    monkeypatch.chdir(tmp_path / "B")
    assert find_prior("m", 2) is None and find_prior("../A/m", 2) is not None
    saved(tmp_path / "A" / "m", seed=2)  # trained on
    assert find_prior("../A/m", 2) is None


def test_revisions_of_the_hub_have_priors_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    commits = ("a" * 40, "b" * 40)
    for seed, commit in enumerate(commits):
        folder = saved(cache / "models--owner--m" / "snapshots" / commit, seed)
        (folder / "config.json").write_text("{}")
    (cache / "models--owner--m" / "refs").mkdir()
    (cache / "models--owner--m" / "refs" / "main").write_text(commits[1])
    assert checkpoint_folder("owner/m") == checkpoint_folder("owner/m", commits[1]) == folder
    AttentionPrior(torch.ones(2, 2), 2, "m", 1, "p").save(default_prior_path("owner/m", 2, commits[0]))
    assert find_prior("owner/m", 2, commits[0]) is not None
    assert find_prior("owner/m", 2, commits[1]) is None and find_prior("owner/m", 2) is None
    # a commit whose files are elsewhere goes by its name
    AttentionPrior(torch.ones(2, 2), 2, "m", 1, "p").save(default_prior_path("owner/m", 2, "c" * 40))
    assert find_prior("owner/m", 2, "c" * 40) is not None and find_prior("owner/m", 2, "d" * 40) is None


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FOVEATE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "foveate"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() == tmp_path / ".cache" / "foveate"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "foveate"
    monkeypatch.setenv("FOVEATE_HOME", "~/mine")
    assert cache_folder() == tmp_path / "mine"
