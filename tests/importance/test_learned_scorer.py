"""Learned scorers from files to kept tokens: every layout they come in, on live models, against the N x N form."""

from __future__ import annotations

import fnmatch
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import foveate
import tiny_models as zoo_module
from foveate.errors import MethodError
from foveate.importance import LearnedScorer, scorer_files
from foveate.methods import Method, get_method
from tiny_models import Zoo

KEYS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
INNER = "visual.importance_scorer."
SHA = "0123456789abcdef0123456789abcdef01234567"


def weights(d: int = 64, prefix: str = "") -> dict[str, Tensor]:
    """Random scorer weights of half the model's width, as VisionSelector makes them."""
    generator = torch.Generator().manual_seed(7)
    shapes = ((d // 2, d), (d // 2,)) * 2
    return {prefix + key: torch.randn(s, generator=generator) for key, s in zip(KEYS, shapes, strict=True)}


def model_tensors() -> dict[str, Tensor]:
    """A little of the model that a scorer lies in, with projections of the same names."""
    layer = "model.layers.0.self_attn."
    return {layer + key: torch.zeros(3, 3) if "weight" in key else torch.zeros(3) for key in KEYS}


def save_sharded(folder: Path) -> None:
    """A whole checkpoint of two shards with the scorer in the second."""
    folder.mkdir(exist_ok=True)
    first, second = model_tensors(), weights(prefix=INNER) | {"visual.merger.mlp.0.weight": torch.zeros(2)}
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    places = {}
    for name, tensors in zip(names, (first, second), strict=True):
        save_file(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def assert_is_the_scorer(found: LearnedScorer) -> None:
    assert all(
        torch.equal(a, b)
        for a, b in zip((found.q_weight, found.q_bias, found.k_weight, found.k_bias), weights().values(), strict=True)
    )


def visual_embeddings(zoo: Zoo, inputs: dict[str, Tensor]) -> Tensor:
    """(N, d) embeddings of the only image's tokens as they enter the unpruned language model."""
    heard: list[Tensor] = []
    handle = zoo.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: heard.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        zoo.model(**inputs)
    handle.remove()
    return heard[0][inputs["input_ids"] == zoo.visual_ids[0]]


def all_pairs(features: Tensor) -> Tensor:
    """The paper's score: the mean over j of the N x N map q_i . k_j / sqrt(h)."""
    q_weight, q_bias, k_weight, k_bias = weights().values()
    pairs = (features @ q_weight.T + q_bias) @ (features @ k_weight.T + k_bias).T
    return (pairs / math.sqrt(q_weight.shape[0])).mean(1)


def marginal_relevance(features: Tensor, scores: Tensor, count: int) -> list[int]:
    """Greedy maximal marginal relevance, token by token, with equal weights."""
    importance = (scores - scores.min()) / (scores.max() - scores.min() + 1e-6)
    unit = features / features.norm(dim=1, keepdim=True)
    chosen = [int(importance.argmax())]
    while len(chosen) < count:
        worth = 0.5 * importance - 0.5 * (unit @ unit[chosen].T).max(1).values
        worth[chosen] = -torch.inf
        chosen.append(int(worth.argmax()))
    return sorted(chosen)


def kept_by(zoo: Zoo, inputs: dict[str, Tensor], method: str, source: Path) -> list[int]:
    with foveate.prune(zoo.model, method, keep=0.25, scorer=source) as pruning, torch.no_grad():
        zoo.model(**inputs)
        return pruning.report().images[0].kept.nonzero().flatten().tolist()


def test_a_folder_decides_what_a_live_model_keeps(zoo: Zoo, tmp_path: Path) -> None:
    save_file(weights(prefix=INNER), tmp_path / "model.safetensors")
    inputs = zoo_module.inputs(zoo, [[zoo_module.picture(140, 196)]])
    features = visual_embeddings(zoo, inputs)
    scores = all_pairs(features)
    count = math.floor(0.25 * len(features) + 0.5)
    best = sorted(scores.topk(count).indices.tolist())
    assert kept_by(zoo, inputs, "visionselector", tmp_path) == best
    assert kept_by(zoo, inputs, "idpruner", tmp_path) == marginal_relevance(features, scores, count) != best


@pytest.mark.parametrize("prefix", ["", "module.", INNER, "module." + INNER])
def test_layouts_of_the_scorer_alone(prefix: str, tmp_path: Path) -> None:
    save_file(weights(prefix=prefix), tmp_path / "anything.safetensors")
    assert_is_the_scorer(LearnedScorer.load(tmp_path))
    assert_is_the_scorer(LearnedScorer.load(tmp_path / "anything.safetensors"))


def test_layouts_of_a_whole_checkpoint(tmp_path: Path) -> None:
    save_file(weights(prefix=INNER) | model_tensors(), tmp_path / "model.safetensors")
    assert_is_the_scorer(LearnedScorer.load(tmp_path))
    save_sharded(tmp_path / "sharded")
    assert_is_the_scorer(LearnedScorer.load(tmp_path / "sharded"))


def test_a_hub_id_is_read_from_the_cache_of_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--scorer"
    snapshot = repository / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    save_file(weights(), snapshot / "model.safetensors")
    assert_is_the_scorer(LearnedScorer.load("owner/scorer"))
    assert_is_the_scorer(LearnedScorer.load("owner/scorer", revision=SHA))
    with pytest.raises(MethodError, match=r"owner/other.*hub"):
        LearnedScorer.load("owner/other")


def test_only_the_shards_with_the_scorer_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    save_sharded(hub)
    (hub / "training_args.bin").write_bytes(b"pickled")
    cache.mkdir()

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("owner/model", "v1")
        for file in hub.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, cache)
        return str(cache)

    monkeypatch.setattr(scorer_files, "snapshot_download", fetch)
    assert_is_the_scorer(LearnedScorer.load("owner/model", revision="v1"))
    fetched = sorted(file.name for file in cache.iterdir())
    assert fetched == ["model-00002-of-00002.safetensors", "model.safetensors.index.json"]


def hooks(zoo: Zoo) -> list[tuple[int, ...]]:
    """The hooks of every module; transformers may have put some of its own there."""
    return [(*module._forward_hooks, *module._forward_pre_hooks) for module in zoo.model.modules()]


def pickles_only(folder: Path) -> None:
    torch.save(weights(), folder / "pytorch_model.bin")


def other_width(folder: Path) -> None:
    save_file(weights(48), folder / "model.safetensors")


def unlike_shapes(folder: Path) -> None:
    save_file(weights() | {"k_proj.bias": torch.zeros(5)}, folder / "model.safetensors")


def missing_keys(folder: Path) -> None:
    save_file({key: value for key, value in weights().items() if "bias" not in key}, folder / "model.safetensors")


def another_network(folder: Path) -> None:
    save_file(weights() | {"norm.weight": torch.zeros(3)}, folder / "model.safetensors")


def no_scorer_inside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": "m.safetensors"}}))


def missing_shard(folder: Path) -> None:
    save_sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def shard_elsewhere(folder: Path) -> None:
    places = dict.fromkeys([INNER + key for key in KEYS], "../secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def broken_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a checkpoint")


def two_files(folder: Path) -> None:
    save_file(weights(), folder / "a.safetensors")
    save_file(weights(), folder / "b.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_width, ("width 48", "this model has width 64")),
        (unlike_shapes, ("k_proj.bias is (5,)", "q_proj.weight (32, 64)")),
        (missing_keys, ("missing: k_proj.bias, q_proj.bias",)),
        (another_network, ("unexpected: norm.weight",)),
        (pickles_only, ("found none", "pickled weights, which are never read")),
        (lambda folder: None, ("found none",)),
        (two_files, ("found 2", "give the file itself")),
        (broken_file, ("not a readable safetensors file",)),
        (no_scorer_inside, ("holds no scorer",)),
        (missing_shard, ("00002-of-00002.safetensors, which is not there",)),
        (shard_elsewhere, ("not safetensors shards beside it",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_scorer_is_refused_before_the_model_is_touched(
    llava: Zoo, tmp_path: Path, spoil: object, words: tuple[str, ...]
) -> None:
    spoil(tmp_path)  # type: ignore[operator]
    before = hooks(llava)
    for method in ("idpruner", "visionselector"):
        with pytest.raises(MethodError) as caught:
            foveate.attach(llava.model, method, keep=0.25, scorer=tmp_path)
        sentence = str(caught.value)
        assert all(word in sentence for word in words), sentence
        assert "\n" not in sentence
        assert sentence.endswith(".")
    assert hooks(llava) == before
    foveate.attach(llava.model, "stride", keep=0.5).detach()


def test_a_models_own_scorer_is_the_default(llava: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = zoo_module.inputs(llava, [[zoo_module.picture(140, 196)]])
    monkeypatch.setattr(llava.model, "name_or_path", str(tmp_path))

    def kept(method: str | Method, **fields: object) -> list[int]:
        with foveate.prune(llava.model, method, keep=0.25, **fields) as pruning, torch.no_grad():
            llava.model(**inputs)
            return pruning.report().images[0].kept.nonzero().flatten().tolist()

    by_attention = kept("idpruner")
    save_file(weights(), tmp_path / "elsewhere.safetensors")
    assert kept("idpruner") == by_attention
    shutil.move(tmp_path / "elsewhere.safetensors", tmp_path / "foveate-scorer.safetensors")
    for method in ("idpruner", "visionselector"):
        assert kept(method) == kept(method, scorer=tmp_path / "foveate-scorer.safetensors")
    assert kept("idpruner") == kept("idpruner", importance="scorer") != by_attention
    assert kept("idpruner", importance="encoder_attention") == by_attention
    with pytest.raises(MethodError, match="not centred; wrap a method without one"):
        kept(get_method("cenprune", base="idpruner"))
    save_file(weights(48), tmp_path / "foveate-scorer.safetensors")
    with pytest.raises(MethodError, match="reads features of width 48"):
        kept("idpruner")


@pytest.mark.parametrize("source", ["/nowhere/scorer", "./scorer", "scorer.safetensors", "a/b/c"])
def test_what_is_neither_here_nor_a_hub_id(source: str) -> None:
    with pytest.raises(MethodError, match="no such file or folder, and not a hub id"):
        LearnedScorer.load(source)


def test_other_files_are_not_opened(tmp_path: Path) -> None:
    pickles_only(tmp_path)
    with pytest.raises(MethodError, match=r"only \.safetensors files are read"):
        LearnedScorer.load(tmp_path / "pytorch_model.bin")


def test_in_the_folder_of_a_model_the_scorer_beside_its_weights_is_read(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / scorer_files.SHIPPED)
    save_file(model_tensors(), tmp_path / "model.safetensors")
    assert_is_the_scorer(LearnedScorer.load(tmp_path))
    save_sharded(tmp_path)
    assert_is_the_scorer(LearnedScorer.load(tmp_path))


def test_pickles_are_told_of_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    two_files(tmp_path)
    (tmp_path / "training_args.bin").touch()
    with pytest.raises(MethodError) as caught:
        LearnedScorer.load(tmp_path)
    assert "a.safetensors, b.safetensors" in str(caught.value) and "pickled" not in str(caught.value)


def test_neighbours_and_padding_change_no_score_by_a_bit() -> None:
    scorer = LearnedScorer(*(weights()[key] for key in KEYS))
    sizes, generator = [37, 200, 64, 1], torch.Generator().manual_seed(1)
    images = [torch.randn(size, 64, generator=generator) for size in sizes]
    together = torch.nn.utils.rnn.pad_sequence(images, batch_first=True, padding_value=9.0)
    valid = torch.arange(200)[None] < torch.tensor(sizes)[:, None]
    scores = scorer.scores(together, valid)
    for row, (image, size) in enumerate(zip(images, sizes, strict=True)):
        assert torch.equal(scores[row, :size], scorer.scores(image[None])[0])
        assert not scores[row, size:].any()
