"""Training a scorer: it resumes exactly, leaves the model alone, exports what it learned, and learns what matters."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from foveate import prune
from foveate.budget import Budget
from foveate.data.samples import Sample
from foveate.importance import LearnedScorer
from foveate.testbed import load_shipped
from foveate.testbed.questions import LARGEST
from foveate.training import Example, ScorerRecipe, TrainableScorer, TrainingError, example_of, train_scorer
from foveate.training.scorer.soft_mask import soft_mask
from tiny_models import Zoo, inputs, picture
from training.helpers import check_resuming, unchanged

_CHANCE = 28 / 196
RECIPE = ScorerRecipe(keep=0.25, epochs=3, batch=4, learning_rate=1e-2, constraint=(0.5, 2.0))


def train(zoo: Zoo, out: Path, recipe: ScorerRecipe = RECIPE, **options) -> LearnedScorer:
    def encode(seed: int) -> Example:
        return Example(inputs(zoo, [[picture(112, 112, seed)]]), torch.tensor([5 + seed, 2]))

    return train_scorer(zoo.model, encode, range(8), recipe, out, **{"save_every": 2, **options})


@pytest.fixture(scope="module")
def whole(llava: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of six steps that nothing interrupted."""
    out = tmp_path_factory.mktemp("training") / "whole"
    with unchanged(llava.model):
        train(llava, out)
    return out


@pytest.mark.parametrize("last", [0, 1, 2, 4])
def test_killed_and_resumed_equals_uninterrupted(llava: Zoo, whole: Path, tmp_path: Path, last: int) -> None:
    check_resuming(partial(train, llava), tmp_path, whole, "scorer.safetensors", steps=6, last=last, save_every=2)


def test_a_finished_training_is_not_done_again(llava: Zoo, whole: Path) -> None:
    content = (whole / "scorer.safetensors").read_bytes()
    train(llava, whole, on_step=lambda log: pytest.fail("a step was done"))
    assert (whole / "scorer.safetensors").read_bytes() == content


def test_what_the_folder_holds(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    weights = [line["constraint_weight"] for line in lines]
    np.testing.assert_allclose(weights, [0.5, 0.8, 1.1, 1.4, 1.7, 2.0])
    card = json.loads((whole / "training.json").read_text())
    assert (card["keep"], card["samples"], card["seed"]) == (0.25, 8, 42) and card["seconds"] > 0
    scorer = LearnedScorer.load(whole)  # the checkpoint beside it does not get in its way
    assert scorer.q_weight.shape == (32, 64) and scorer.q_weight.dtype == torch.float32


def test_forwards_of_several_questions_give_the_same_scorer(llava: Zoo, whole: Path, tmp_path: Path) -> None:
    features, scorers = torch.randn(1, 16, 64), (train(llava, tmp_path, micro_batch=3), LearnedScorer.load(whole))
    got, wanted = (scorer.scores(features)[0] for scorer in scorers)
    # Up to a constant, which no choice depends on; no gradient but rounding moves it.
    difference = (got - got.mean()) - (wanted - wanted.mean())
    assert difference.abs().max() < 0.01 * wanted.std()


def test_other_settings_are_not_resumed(llava: Zoo, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds a training with learning_rate 0\.01, not 0\.1"):
        train(llava, whole, replace(RECIPE, learning_rate=0.1))
    with pytest.raises(TrainingError, match="holds a training with data None, not 'other'"):
        train(llava, whole, facts={"data": "other"})
    (tmp_path / "checkpoint.pt").write_bytes(b"broken")
    with pytest.raises(TrainingError, match=r"cannot be read .*; delete it to start anew"):
        train(llava, tmp_path)


def test_recipes_that_cannot_be(llava: Zoo, tmp_path: Path) -> None:
    for wrong in ({"keep": 1.0}, {"keep": "auto"}, {"batch": 0}, {"warmup": 1.0}, {"constraint": (-1.0, 1.0)}):
        with pytest.raises(TrainingError):
            replace(RECIPE, **wrong)
    with pytest.raises(TrainingError, match="nothing to learn from"):
        train_scorer(llava.model, lambda sample: sample, [], RECIPE, tmp_path)


def test_attention_that_takes_no_soft_mask(llava: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava.model.model.language_model.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(TrainingError, match=r"which 'flash_attention_2' does not; .* or use gate='embeddings'"):
        train(llava, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_training(llava: Zoo, tmp_path: Path) -> None:
    handle = llava.model.lm_head.register_forward_hook(lambda module, args, output: output * torch.nan)
    try:
        with pytest.raises(TrainingError, match="not finite in step 0; lower the learning rate"):
            train(llava, tmp_path)
    finally:
        handle.remove()


def test_each_epoch_goes_through_all_samples_once() -> None:
    recipe = replace(RECIPE, batch=3)
    picks = [pick for step in range(10) for pick in recipe.picks(step, 10)]
    epochs = [picks[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1]
    assert recipe.steps(10) == 10 and replace(recipe, epochs=0.1).steps(10) == 1


def test_the_rate_rises_and_falls() -> None:
    rates = [replace(RECIPE, warmup=0.1).rate(step, 100) for step in range(100)]
    assert np.argmax(rates) in (9, 10) and max(rates) == RECIPE.learning_rate and rates[-1] < 1e-5
    assert (np.diff(rates[:10]) > 0).all() and (np.diff(rates[10:]) < 0).all()


def test_a_hard_mask_is_pruning_by_the_saved_scorer(zoo: Zoo, tmp_path: Path) -> None:
    """Once scores are far apart, the model under the mask of the training is the model that visionselector prunes."""
    scorer = TrainableScorer(zoo.model.config.get_text_config().hidden_size, spread=300.0)
    scorer.save(tmp_path / "scorer.safetensors")
    batch = inputs(zoo, [[picture(112, 112, 0)], [picture(112, 112, 5)]])
    with torch.no_grad():
        with soft_mask(zoo.model, scorer, Budget(0.25), "attention") as mask:
            masked = zoo.model(**batch).logits[:, -1]
        assert (mask.take().agreement > 0.9999).all()
        with prune(zoo.model, "visionselector", keep=0.25, scorer=tmp_path):
            pruned = zoo.model(**batch).logits[:, -1]
        assert (zoo.model(**batch).logits[:, -1] - pruned).abs().max() > 0.1
    torch.testing.assert_close(masked, pruned, rtol=1e-3, atol=1e-3)


# What testbed-llava is shown: seven things, each of its own colour, on noise; it is asked what one of them is.
_COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 225, 50),
    "magenta": (225, 60, 215),
    "cyan": (60, 215, 225),
    "orange": (245, 140, 30),
}
_KINDS = ("circle", "square", "triangle", "ring")
_CELLS, _PATCH = 14, 8  # tokens a side, pixels a token


def scene(seed: int) -> tuple[Sample, torch.Tensor]:
    """A drawing with its question, and which of its 196 tokens show something (28 of them)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(rng.uniform(60, 190), 15, (LARGEST, LARGEST, 3)).clip(0, 255)
    image = Image.fromarray(noise.astype(np.uint8))
    draw, shown, kinds = ImageDraw.Draw(image), torch.zeros(_CELLS, _CELLS, dtype=torch.bool), {}
    places = rng.permutation(36)[: len(_COLOURS)]
    for place, (colour, value) in zip(places.tolist(), _COLOURS.items(), strict=True):
        row, column = 2 * (place // 6) + 1, 2 * (place % 6) + 1
        x, y, far = column * _PATCH, row * _PATCH, 2 * _PATCH - 1
        kinds[colour] = kind = _KINDS[rng.integers(4)]
        if kind == "square":
            draw.rectangle((x, y, x + far, y + far), fill=value)
        elif kind == "triangle":
            draw.polygon(((x + far / 2, y), (x + far, y + far), (x, y + far)), fill=value)
        else:
            draw.ellipse((x, y, x + far, y + far), fill=None if kind == "ring" else value, outline=value, width=4)
        shown[row : row + 2, column : column + 2] = True
    asked = list(_COLOURS)[seed % len(_COLOURS)]
    return Sample(str(seed), f"which object is {asked}?", (kinds[asked],), (image,)), shown.flatten()


def learn(out: Path, steps: int, samples: int) -> tuple[LearnedScorer, float]:
    """A scorer for testbed-llava, and how much the loss fell from the first tenth of the steps to the last."""
    model, processor = load_shipped()
    drawn = [scene(seed)[0] for seed in range(samples)]
    recipe = ScorerRecipe(
        keep=_CHANCE, epochs=8 * steps / samples, batch=8, learning_rate=5e-3, warmup=0.2, constraint=(1.0, 1.0)
    )
    losses: list[float] = []
    scorer = train_scorer(
        model,
        lambda sample: example_of(processor, sample),
        drawn,
        recipe,
        out,
        micro_batch=8,
        on_step=lambda log: losses.append(log.answer_loss + log.constraint),
    )
    tenth = max(1, steps // 10)
    return scorer, float(np.mean(losses[:tenth]) - np.mean(losses[-tenth:]))


def share_on_things(scorer: LearnedScorer, scenes: range) -> float:
    """Mean share of the 28 tokens kept that show something; by chance 28 / 196."""
    model, processor = load_shipped()
    found = []
    with torch.no_grad(), prune(model, "visionselector", keep=_CHANCE, scorer=scorer) as pruning:
        for sample, shown in map(scene, scenes):
            model(**example_of(processor, sample).inputs)
            found.append(float(shown[pruning.report().images[0].kept.flatten()].float().mean()))
    return float(np.mean(found))


@pytest.mark.slow
def test_the_model_teaches_where_things_are(tmp_path: Path) -> None:
    """In a few steps on drawings; drawings that it was not trained on, by the scorer as it was saved."""
    scorer, fell = learn(tmp_path, steps=20, samples=80)
    assert fell > 0.1
    assert share_on_things(scorer, range(1000, 1010)) > 0.8
